"""What an administrator does by clicking: open a model to somebody, and close it again."""

import re

from playwright.sync_api import Locator, Page, expect

from accounts.models import Role
from tests.conftest import CHAT, PASSWORD


def open_page(page: Page, menu: str, *, add: str) -> None:
    """By the menu, to the form of something new."""
    page.get_by_role("link", name=menu, exact=True).first.click()
    page.get_by_role("link", name=re.compile(f"^Add {add}$", re.IGNORECASE)).first.click()


def field(within: Page | Locator, label: str) -> Locator:
    return within.get_by_label(re.compile(f"^{label}:?$", re.IGNORECASE)).first


def save(page: Page) -> None:
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("successfully")).to_be_visible()


def choose(page: Page, field: str, text: str) -> None:
    """In a chooser that looks for what is typed."""
    page.get_by_role("combobox", name=field).first.click()
    page.get_by_role("searchbox").last.fill(text)  # the first is the menu's
    page.get_by_role("option", name=text, exact=True).last.click()


def test_a_model_is_opened_to_somebody_and_a_key_revoked(as_admin, gateway, upstream):
    page = as_admin
    open_page(page, "Routers", add="router")
    field(page, "Name").fill("clicked")
    field(page, "Type").select_option("text-generation")
    page.get_by_text("Add another Provider").click()
    provider = page.locator("#providers-0")
    field(provider, "Type").select_option("openai")
    field(provider, "Model name").fill("upstream-name")
    field(provider, "Url").fill(upstream.url)
    save(page)

    open_page(page, "Roles", add="role")
    field(page, "Name").fill("clickers")
    field(page, "Open routers").select_option(label="clicked")
    save(page)
    assert Role.objects.get(name="clickers").limits.count() == 4

    open_page(page, "Users", add="user")
    field(page, "E-mail").fill("clicker@example.org")
    field(page, "Password").fill(PASSWORD)
    field(page, "Password confirmation").fill(PASSWORD)
    choose(page, "Role", "clickers")
    save(page)

    open_page(page, "Keys", add="key")
    choose(page, "User", "clicker@example.org")
    field(page, "Name").fill("by hand")
    save(page)
    key = page.get_by_text(re.compile("The key is")).locator("code").inner_text()
    page.reload()
    expect(page.get_by_text(key)).to_have_count(0)

    with gateway.client(key) as caller:
        chat = {**CHAT, "model": "clicked"}
        assert caller.post("/v1/chat/completions", json=chat).status_code == 200
        page.get_by_role("link", name="by hand").first.click()
        page.get_by_role("link", name="Delete").click()
        page.get_by_role("button", name="Yes, I’m sure").click()
        expect(page.get_by_text("deleted successfully")).to_be_visible()
        assert caller.post("/v1/chat/completions", json=chat).status_code == 401
