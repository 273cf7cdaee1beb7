"""What an administrator does by clicking: open a model to somebody, see it used, and close it again."""

import pytest
from playwright.sync_api import Locator, Page, expect

from accounts.models import Key, Role, User
from routing.models import Provider, Router
from tests.browser.chromium import is_drawn
from tests.conftest import CHAT, PASSWORD
from usage.models import UsageRecord
from usage.rollups import roll_up


def to(page: Page, model: str) -> None:
    """To the list of a model's rows, by the menu."""
    page.locator(f"a[href='/admin/{model}/']").first.click()


def to_new(page: Page, model: str) -> None:
    to(page, model)
    page.locator(f"main a[href^='/admin/{model}/add/'], .object-tools a[href^='/admin/{model}/add/']").first.click()


def save(page: Page, *, and_stay: bool = False) -> None:
    page.locator("[name=_continue]" if and_stay else "[name=_save]").first.click()
    expect(page.locator(".messagelist .success")).to_be_visible()


def choose(page: Page, field: str, text: str) -> None:
    """In a chooser that looks for what is typed."""
    page.locator(f".field-{field} .select2-selection").click()
    page.locator(".select2-search__field").fill(text)
    page.locator(".select2-results__option", has_text=text).click()


def figures(within: Locator) -> dict[str, str]:
    """The words and what stands beside them."""
    names, values = within.locator("dt").all_inner_texts(), within.locator("dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def test_a_model_is_opened_to_somebody_who_calls_it_until_the_key_is_revoked(as_admin, gateway, upstream, records):
    page = as_admin
    open_a_router(page, upstream.url)
    open_it_to_a_role(page)
    create_a_user_with_a_budget(page)
    key = create_a_key(page)
    try_the_router(page)
    with gateway.client(key) as caller:
        chat = {**CHAT, "model": "clicked"}
        assert caller.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
        records(2)
        look_at_the_call(page)
        revoke_the_key(page)
        assert caller.post("/v1/chat/completions", json=chat).status_code == 401


def open_a_router(page: Page, url: str) -> None:
    to_new(page, "routing/router")
    page.locator("#id_name").fill("clicked")
    page.locator("#id_type").select_option("text-generation")
    page.locator("#id_cost_prompt_tokens").fill("1000")
    page.locator("#providers-group .add-row a").click()
    page.locator("#id_providers-0-type").select_option("openai")
    page.locator("#id_providers-0-model_name").fill("upstream-name")
    page.locator("#id_providers-0-url").fill(url)
    page.locator("#id_providers-0-new_key").fill("upstream-secret")
    save(page)
    assert Provider.objects.get().router.name == "clicked"


def open_it_to_a_role(page: Page) -> None:
    to_new(page, "accounts/role")
    page.locator("#id_name").fill("clickers")
    row = page.locator("tr[data-name=clicked]")
    row.locator("select").select_option("open")
    cells = row.locator("input[type=text]")
    expect(cells).to_have_count(4)
    for number in range(4):
        expect(cells.nth(number)).to_have_value("unlimited")
    cells.nth(1).fill("soon")
    page.locator("[name=_save]").first.click()
    expect(cells.nth(1)).to_have_attribute("aria-invalid", "true")
    cells.nth(1).fill("1,000")
    save(page)
    limits = Role.objects.get(name="clickers").limits.order_by("value")
    assert list(limits.values_list("value", flat=True)) == [1000, None, None, None]


def create_a_user_with_a_budget(page: Page) -> None:
    to_new(page, "accounts/organization")
    page.locator("#id_name").fill("Clickers' Ministry")
    save(page)
    to_new(page, "accounts/user")
    page.locator("#id_email").fill("clicker@example.org")
    page.locator("#id_password1").fill(PASSWORD)
    page.locator("#id_password2").fill(PASSWORD)
    choose(page, "role", "clickers")
    choose(page, "organization", "Clickers' Ministry")
    page.locator("#id_account-0-budget").fill("5")
    save(page, and_stay=True)
    user = User.objects.get(email="clicker@example.org")
    assert (user.role.name, str(user.organization), user.account.budget) == ("clickers", "Clickers' Ministry", 5)
    expect(page.locator("meter").first).to_have_attribute("value", "5.000000")


def create_a_key(page: Page) -> str:
    """On the page of its user. It is shown once."""
    page.locator("#keys input[name=name]").fill("by hand")
    page.locator("#keys form [type=submit]").click()
    text = page.locator("#new-key").inner_text()
    assert text.startswith("sk-")
    page.locator("[data-copy=new-key]").click()
    expect(page.locator("[data-copy=new-key]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text
    to(page, "accounts/user")
    page.get_by_role("link", name="clicker@example.org").click()
    expect(page.locator("#keys tbody")).to_contain_text("by hand")
    assert text not in page.content()
    return text


def try_the_router(page: Page) -> None:
    """A call of the administrator's, without a key: its answer, and what it took."""
    to(page, "routing/router")
    page.get_by_role("link", name="clicked", exact=True).click()
    page.locator("[data-trial=trial]").click()
    result = page.locator("#trial section.trial")
    expect(result.locator(".answer")).to_have_text("Hello there, friend.")
    told = figures(result)
    assert (told["Tokens"], told["Cost"]) == ("9 in, 12 out", "0.009")
    assert " ms" in told["Latency"]


def look_at_the_call(page: Page) -> None:
    """In the explorer, with all that happened to it."""
    to(page, "usage/usagerecord")
    page.locator("#id_user").fill("clicker@")
    page.locator("#request-filter [type=submit]").first.click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("by hand")
    rows.locator("th a").click()
    call = UsageRecord.objects.get(user_email="clicker@example.org")
    page.locator("button[data-copy]").click()
    assert page.evaluate("navigator.clipboard.readText()") == call.request_id
    main = page.locator("#content-main")
    expect(main.get_by_role("region", name="Limits").locator("tbody tr")).to_have_count(4)
    expect(main.get_by_role("region", name="Limits")).to_contain_text("1,000")
    expect(main.get_by_role("region", name="Providers").locator("tbody tr")).to_contain_text(["upstream-name"])
    expect(main.get_by_role("region", name="Tries").locator("tbody tr")).to_have_count(1)
    assert main.get_by_role("region", name="Stages").locator("tbody tr").count() > 1
    expect(main).to_contain_text("clicker@example.org")
    expect(main).not_to_contain_text("Say hello")
    expect(main).not_to_contain_text("Hello there")


def revoke_the_key(page: Page) -> None:
    to(page, "accounts/user")
    page.get_by_role("link", name="clicker@example.org").click()
    page.locator("#keys tbody tr", has_text="by hand").locator("a", has_text="Revoke").click()
    page.locator("main form [type=submit], #content form [type=submit]").first.click()
    expect(page.locator(".messagelist .success")).to_be_visible()
    assert not Key.objects.exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dashboard_draws_what_happened(as_admin, as_ada, router, chat, records, scheme):
    Router.objects.update(cost_prompt_tokens=1000)
    Provider.objects.update(model_total_params=70, model_active_params=70)
    for _ in range(3):
        assert chat(as_ada).status_code == 200
    assert chat(as_ada, temperature="hot").status_code == 422
    records(3)
    roll_up()
    page = as_admin
    page.emulate_media(color_scheme=scheme)
    page.reload()
    requests = page.locator(".figure").first
    expect(requests.locator(".number")).to_have_text(str(UsageRecord.objects.count()))
    expect(page.locator("[aria-labelledby=routers] tbody tr")).to_contain_text(["model"])
    charts = page.locator("canvas[data-chart]")
    expect(charts).to_have_count(4)
    for chart in charts.all():
        assert is_drawn(chart), chart.get_attribute("data-chart")
    page.locator("#period").select_option(index=0)
    page.locator("#organization").select_option(label="Ministry of Tests")
    page.locator("form.tools [type=submit]").click()
    expect(requests.locator(".number")).to_have_text(str(UsageRecord.objects.count()))
