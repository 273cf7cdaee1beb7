"""What somebody does in the playground by clicking, with a model that is told what to answer and when."""

import csv
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from accounts.models import Key, User
from knowledge.models import Collection, Document
from routing.models import Provider, Router
from tests.browser.chromium import accessibility_faults, is_drawn, is_too_wide
from tests.browser.conftest import sign_in
from tests.conftest import CHAT, PASSWORD
from tests.knowledge.conftest import collection, embeddings  # noqa: F401  fixtures
from tests.upstream import EVENTS, Reply, chunk, event, finish, story, usage_chunk
from tests.usage.records import fund

COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def as_user(page: Page, ada: User, router: object) -> Page:
    """The page of ada, who came in by the playground's own form; her model costs and emits something."""
    Router.objects.update(cost_prompt_tokens=1000)
    Provider.objects.update(model_total_params=70, model_active_params=70)
    enter(page, ada.email)
    return page


def enter(page: Page, email: str) -> None:
    page.goto("/playground")
    page.locator("#id_username").fill(email)
    page.locator("#id_password").fill(PASSWORD)
    page.locator("#login").click()
    expect(page.locator("#logout")).to_be_visible()


def to(page: Page, name: str) -> None:
    page.locator(f".menu a[href='/playground{name}']").click()


def ask(page: Page, words: str) -> Locator:
    """The answer, as it comes."""
    page.locator("#message").fill(words)
    page.locator("#send").click()
    return page.locator(".message.assistant").last


def answers(content: str) -> list[bytes]:
    return [event(chunk(content)), event(finish()), event(usage_chunk()), event("[DONE]")]


def test_words_appear_while_the_model_still_speaks(as_user, upstream, records):
    goes_on = threading.Event()

    def dripping() -> Iterator[bytes]:
        first, *rest = story()
        yield first
        while not goes_on.is_set():
            yield b""
        yield from rest

    upstream.route(COMPLETIONS, lambda request: Reply(dripping(), content_type=EVENTS))
    page = as_user
    page.locator("#system").fill("Be brief.")
    page.locator("#temperature").fill("0.5")
    page.locator("#max_tokens").fill("50")
    answer = ask(page, "Say hello.")
    expect(answer.locator(".body")).to_have_text("Hello")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#send")).to_be_hidden()
    assert answer.locator(".figures-line").count() == 0
    goes_on.set()
    expect(answer.locator(".body")).to_have_text("Hello there, friend.")
    figures = answer.locator(".figures-line")
    expect(figures).to_contain_text("9 + 12 tokens")
    expect(figures).to_contain_text("0.009")
    (record,) = records()
    shown = re.search(r"([\d.]+)\s*g CO₂e", figures.inner_text())
    assert shown is not None
    assert float(shown[1]) == pytest.approx(float(record.gco2eq), rel=0.005)
    expect(page.locator("#send")).to_be_visible()
    asked = upstream.received[0].json
    assert [turn["role"] for turn in asked["messages"]] == ["system", "user"]
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 50)
    page.reload()  # the tab remembers
    expect(page.locator(".message")).to_have_count(2)


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_long_answer_is_stopped_and_the_talk_goes_on(as_user, upstream, records, how):
    upstream.reply(chunks=story()[:2], then="stall")
    page = as_user
    answer = ask(page, "Tell me everything.")
    expect(answer.locator(".body")).to_have_text("Hello there")
    if how == "button":
        page.locator("#stop").click()
    else:
        page.keyboard.press("Escape")
    expect(answer.locator(".stopped")).to_be_visible()
    assert upstream.received[0].left.wait(10)
    (record,) = records()
    assert (record.outcome, record.status) == ("client_left", 200)
    answer.locator(".regenerate").click()
    expect(page.locator(".message.assistant .body")).to_have_text(["Hello there, friend."])
    ask(page, "And then?")
    expect(page.locator(".message.assistant .body")).to_have_text(["Hello there, friend."] * 2)


HOSTILE = """# A heading

<img src="https://evil.example/a.png" onerror="window.hacked=1"><script>window.hacked=1</script>

![picture](https://evil.example/b.png) [click](javascript:window.hacked=1) [data](data:text/html,<script>1</script>)
<javascript:window.hacked=1> <svg onload=window.hacked=1> [fine](https://example.org/)

| a | b |
|:--|--:|
| <b onmouseover=window.hacked=1>x</b> | 1 |

```python
print("<script>window.hacked=1</script>")
```

<form action="https://evil.example"><input name=message id=message></form> <style>* { display: none }</style>
"""


def test_what_a_model_says_is_shown_and_not_obeyed(as_user, watch, upstream):
    upstream.reply(chunks=answers(HOSTILE))
    page = as_user
    answer = ask(page, "<img src=x onerror=window.hacked=1>")
    expect(answer.locator(".figures-line")).to_be_visible()
    body = answer.locator(".body")
    expect(body.locator("h1")).to_have_text("A heading")
    assert "<img src=" in body.inner_text()
    assert 'print("<script>' in body.locator("pre").inner_text()
    assert "<img src=x" in page.locator(".message.user .body").inner_text()
    assert page.locator(".message :is(img, script, svg, style, form, input, iframe)").count() == 0
    addresses = [link.get_attribute("href") for link in body.locator("a").all()]
    assert {"https://evil.example/b.png", "https://example.org/"} < set(addresses)
    assert all(address and address.startswith("https://") for address in addresses)
    assert "javascript:window.hacked=1" in body.inner_text()
    body.locator("td").first.hover()
    assert not page.evaluate("'hacked' in window")
    assert not [url for url in watch.requests if "evil" in url]
    assert not accessibility_faults(page)
    page.emulate_media(color_scheme="dark")
    assert not accessibility_faults(page, only="color-contrast")
    page.set_viewport_size({"width": 390, "height": 844})
    assert not is_too_wide(page)


def test_a_failure_is_told_in_words(as_user, watch, upstream, ada):
    upstream.reply(chunks=story()[:2], then="cut")
    page = as_user
    answer = ask(page, "Say hello.")
    expect(answer.locator(".failure")).to_be_visible()
    expect(answer.locator(".body")).to_have_text("Hello there")
    fund(ada, 0)
    answer = ask(page, "Once more.")
    expect(answer.locator(".failure a")).to_have_attribute("href", "/playground/limits")
    watch.troubles[:] = [trouble for trouble in watch.troubles if "playground/chat" not in trouble]


def test_a_document_is_uploaded_read_searched_and_quoted(
    page,
    admin,
    ada,
    router,
    collection,  # noqa: F811
    worker,
    upstream,
    tmp_path,
):
    hostile = "<img src=x onerror=window.hacked=1>"
    file = tmp_path / f"canteen {hostile.replace('/', '')}.txt"
    file.write_text("The canteen opens at noon and a lunch costs four coins.\n\nHolidays are asked for in writing.")
    sign_in(page, admin.email)
    page.locator("a[href='/admin/knowledge/collection/']").first.click()
    page.get_by_role("link", name="adas", exact=True).click()
    page.locator("#id_file").set_input_files(file)
    page.locator("form[action='/admin/knowledge/document/add/'] [type=submit]").click()
    document = Document.objects.get(collection=collection)
    see_it_read(page, document)
    compare_the_methods(page, collection)
    page.locator("#logout-form [type=submit]").click()

    enter(page, ada.email)
    to(page, "/search")
    page.locator("#id_query").fill("What does a lunch cost?")
    page.locator("#search").click()
    results = page.locator("#results li")
    expect(results.first).to_contain_text("four coins")
    expect(results.first).to_contain_text(hostile)

    to(page, "")
    page.locator(f"#collection-{collection.pk}").check()
    answer = ask(page, "What does a lunch cost?")
    expect(answer.locator(".sources li").first).to_contain_text("four coins")
    expect(answer.locator(".sources .name").first).to_contain_text(hostile)
    assert "four coins" in upstream.received[-1].body.decode()
    assert not page.evaluate("'hacked' in window")
    assert not accessibility_faults(page)


def see_it_read(page: Page, document: Document) -> None:
    """On the page of its collection, which follows the work by itself."""
    page.locator("a[href='/admin/knowledge/collection/']").first.click()
    page.get_by_role("link", name="adas", exact=True).click()
    row = page.locator("#documents tbody tr")
    expect(row).to_contain_text("canteen")
    expect(row.locator(".badge")).to_have_text("ready", timeout=45_000)
    row.locator("a").click()
    expect(page.locator("[data-live] .badge")).to_have_text("ready")
    document.refresh_from_db()
    assert document.chunks.exists()


def compare_the_methods(page: Page, collection: Collection) -> None:  # noqa: F811
    page.locator("a[href='/admin/knowledge/collection/']").first.click()
    page.get_by_role("link", name="adas", exact=True).click()
    page.locator(f"a[href='/admin/knowledge/collection/{collection.pk}/search/']").click()
    page.locator("#id_query").fill("What does a lunch cost?")
    page.locator("main form [type=submit], #content form [type=submit]").first.click()
    for method in ("semantic", "lexical", "hybrid"):
        column = page.locator(f"section[aria-labelledby={method}-title]")
        expect(column.locator(".results li").first).to_contain_text("four coins")
        assert float(column.locator(".results .number").first.inner_text()) > 0
    assert not accessibility_faults(page)


def test_a_key_is_made_shown_once_used_and_revoked(as_user, gateway):
    page = as_user
    to(page, "/keys")
    page.locator("#id_name").fill("of my laptop")
    page.locator("#create-key").click()
    text = page.locator("#key-text").inner_text()
    page.locator("[data-copy=key-text]").click()
    expect(page.locator("[data-copy=key-text]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.reload()
    expect(page.locator("#keys-table tbody tr")).to_have_count(1)
    assert text not in page.content()
    with gateway.client(text) as caller:
        assert caller.post(COMPLETIONS, json=CHAT).status_code == 200
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.locator(".revoke").click()
        assert Key.objects.count() == 1
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator(".revoke").click()
        expect(page.locator("#no-keys")).to_be_visible()
        assert caller.post(COMPLETIONS, json=CHAT).status_code == 401


def test_usage_and_limits_are_read_downloaded_and_seen_in_french_and_in_the_dark(as_user, as_ada, ada, chat, records):
    fund(ada, 5)
    for _ in range(2):
        assert chat(as_ada).status_code == 200
    records(2)
    page = as_user
    to(page, "/usage")
    expect(page.locator("#models-table tbody tr")).to_contain_text(["model"])
    charts = page.locator("canvas[data-chart]")
    assert charts.count() > 2
    assert all(is_drawn(chart) for chart in charts.all())
    with page.expect_download() as download:
        page.locator("#usage-csv").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [(row["router_name"], row["total_tokens"]) for row in rows] == [("model", "21")] * 2

    to(page, "/limits")
    expect(page.locator("#budget-left")).to_have_text("4.982")
    expect(page.locator("#limits-table tbody tr")).to_contain_text(["model"])
    page.locator("#language-fr").click()
    expect(page.locator("html")).to_have_attribute("lang", "fr")
    expect(page.locator("#budget-left")).to_have_text("4,982")
    expect(page.locator("#language-en")).to_be_visible()

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(3):  # automatic, light, dark
        if page.locator("html").get_attribute("data-theme") != "dark":
            page.locator("#theme-toggle").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    to(page, "/snippets")
    assert page.locator("html").get_attribute("lang") == "fr"
    assert page.locator("html").get_attribute("data-theme") == "dark"
    expect(page.locator("#curl-code")).to_contain_text('"model"')
    for snippet in ("curl", "openai", "langchain"):
        expect(page.locator(f"#{snippet}-code")).to_contain_text(page.locator("#snippet-model").input_value())
    assert not accessibility_faults(page)
