"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connections
from playwright.sync_api import Browser, Page, expect, sync_playwright

from accounts.models import User
from tests.browser.chromium import HOW_TO_GET_ONE, Watch, executable
from tests.conftest import PASSWORD
from tests.flows.worker import Worker
from tests.server import ROOT, Server

PICTURES = ROOT / "var" / "browser"  # of failures
PATIENCE_MS = 15_000
_watched = pytest.StashKey[Watch]()


@pytest.fixture(scope="module")
def browser(_gateway: Server) -> Iterator[Browser]:
    """One for the tests of a file. While it is open an event loop runs in this thread: Django, which refuses to work
    beside one, must be told that this is meant; and it would open another connection there, which no fixture knows."""
    path = executable()
    if path is None:
        pytest.skip(HOW_TO_GET_ONE)
    connection = connections[DEFAULT_DB_ALIAS]
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        connections[DEFAULT_DB_ALIAS] = connection
        expect.set_options(timeout=PATIENCE_MS)
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()
        del connections[DEFAULT_DB_ALIAS]


@pytest.fixture
def watch(gateway: Server, request: pytest.FixtureRequest) -> Watch:
    """What goes wrong on the pages of this test; a test fails for it."""
    watch = request.node.stash[_watched] = Watch(gateway.url)
    return watch


@pytest.fixture
def page(browser: Browser, gateway: Server, watch: Watch) -> Iterator[Page]:
    """An empty page, of somebody who was never here. Paths are those of the gateway."""
    # What fades from one colour into another is looked at when it is done.
    how: Any = {"viewport": {"width": 1400, "height": 900}, "reduced_motion": "reduce"}
    with browser.new_context(base_url=gateway.url, **how) as context:
        context.set_default_timeout(PATIENCE_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        watch.over(context)
        yield context.new_page()


@pytest.fixture
def as_admin(page: Page, admin: User) -> Page:
    """The page of an administrator who came in by the form."""
    sign_in(page, admin.email)
    return page


def sign_in(page: Page, email: str) -> None:
    page.goto("/admin/login/?next=/admin/")
    page.locator("#id_username").fill(email)
    page.locator("#id_password").fill(PASSWORD)
    page.locator("#login-form [type=submit]").click()
    expect(page.locator("#logout-form")).to_be_visible()


@pytest.fixture
def worker(gateway: Server, tmp_path: Path) -> Iterator[Worker]:
    """Reads documents and keeps the sums."""
    worker = Worker(tmp_path, DJANGO_ALLOW_ASYNC_UNSAFE="").start()
    yield worker
    worker.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield
    watch = item.stash.get(_watched, None)
    page: Page | None = getattr(item, "funcargs", {}).get("page")
    if page and not page.is_closed():
        page.evaluate("0")  # what happened before has been told when this is answered
    assert not (watch and watch.troubles), "On these pages something went wrong:\n" + "\n".join(watch.troubles)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a failure, keep a picture and the page."""
    report = yield
    page: Page | None = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and page and not page.is_closed():
        place = PICTURES / re.sub(r"\W+", "-", item.nodeid).strip("-")
        PICTURES.mkdir(parents=True, exist_ok=True)
        try:
            page.screenshot(path=f"{place}.png", full_page=True)
            Path(f"{place}.html").write_text(page.content())
            kept = f"{page.url}, seen in {place}.png and {place}.html"
        except Exception as error:  # the browser is what failed
            kept = f"No picture could be taken: {error}"
        watch = item.stash.get(_watched, None)
        report.sections.append(("The page at the end", "\n".join([kept, *(watch.troubles if watch else [])])))
    return report
