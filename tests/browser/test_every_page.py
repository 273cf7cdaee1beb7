"""Every page there is, wide and narrow, light and dark, with rows whose names are attempts at it."""

import pytest
from playwright.sync_api import Error, Page, ViewportSize

from tests.browser.addresses import Address, pages
from tests.browser.chromium import Watch, accessibility_faults, is_too_wide
from tests.browser.hostile import MARKUP, marked, row_of, seed

WIDE: ViewportSize = {"width": 1400, "height": 900}
NARROW: ViewportSize = {"width": 390, "height": 844}
# These pages of all models are made alike: axe-core, which takes its time, looks at one in each part.
ALIKE = ("_history", "_delete")
PARTS = ("accounts", "knowledge", "routing", "usage", "the rest")


# What refuses even an administrator who opens it: it is only sent to, or it is history and rows that others make.
SENT_TO = {
    "admin:accounts_user_keys",
    "admin:accounts_user_unlock",
    "admin:knowledge_collection_reembed",
    "admin:knowledge_document_retry",
    "admin:routing_provider_test",
    "admin:routing_router_test",
    "playground:logout",
}
MADE_ELSEWHERE = {
    "admin:auditlog_logentry_add",
    "admin:auditlog_logentry_delete",
    "admin:axes_accessattempt_add",
    "admin:knowledge_chunk_add",
    "admin:knowledge_chunk_delete",
    "admin:knowledge_collection_add",
    "admin:knowledge_space_add",
    "admin:knowledge_space_delete",
    "admin:usage_dailyusage_add",
    "admin:usage_dailyusage_delete",
    "admin:usage_reservation_add",
    "admin:usage_reservation_delete",
    "admin:usage_usagerecord_add",
    "admin:usage_usagerecord_delete",
}
REFUSED = dict.fromkeys(SENT_TO, 405) | dict.fromkeys(MADE_ELSEWHERE, 403)


def names_it(shown: Address) -> bool:
    """Whether the hostile name must be on the page."""
    if shown.name.endswith("_changelist"):
        return shown.model is not None and marked(row_of(shown.model))
    return shown.row is not None and shown.name.endswith(("_change", "_delete")) and marked(shown.row)


def part_of(shown: Address) -> str:
    return next((part for part in PARTS if shown.name.startswith((f"admin:{part}_", f"{part}:"))), "the rest")


def kind_of(shown: Address) -> str:
    """The last word of the name of a model's page; other pages are each a kind of its own."""
    is_of_model = any(shown.name.startswith(f"admin:{part}_") for part in (*PARTS, "auditlog", "axes"))
    return shown.name.rpartition("_")[2] if is_of_model else shown.name


def faults(page: Page, watch: Watch, shown: Address, known_kinds: set[str]) -> list[str]:
    """All that is wrong with the page; its colours are looked at once for each kind, in the light and in the dark."""
    page.set_viewport_size(WIDE)
    page.emulate_media(color_scheme="light")
    known = len(watch.troubles)
    try:
        answer = page.goto(shown.path)
    except Error as error:
        if "Download is starting" in error.message or "ERR_ABORTED" in error.message:
            return []  # a file
        raise
    assert answer is not None
    if answer.status == REFUSED.get(shown.name):
        page.evaluate("0")
        del watch.troubles[known:]
        return []
    if answer.status != 200 or shown.name in REFUSED:
        return [f"status {answer.status}"]
    found: list[str] = []
    if names_it(shown) and MARKUP not in seen(page):
        found.append("the hostile name is not shown as it is")
    if page.evaluate("'hacked' in window"):
        found.append("a name ran as a script")
    if scripted := page.evaluate(SCRIPTED):
        found.append(f"an address is a script: {scripted}")
    is_new = kind_of(shown) not in known_kinds
    known_kinds.add(kind_of(shown))
    if is_new or not shown.name.endswith(ALIKE):
        # Colours are those of the kind, and half of the work.
        without = None if is_new else "color-contrast"
        found += [f"light: {fault}" for fault in accessibility_faults(page, without=without)]
    if is_new:
        page.emulate_media(color_scheme="dark")
        found += [f"dark: {fault}" for fault in accessibility_faults(page, only="color-contrast")]
    if is_too_wide(page):
        found.append("scrolls sideways when wide")
    page.set_viewport_size(NARROW)
    if is_too_wide(page):
        found.append(f"scrolls sideways when narrow: {page.evaluate(TOO_WIDE)}")
    found += watch.troubles[known:]
    del watch.troubles[known:]
    return found


SCRIPTED = """() => [...document.querySelectorAll("[href], [src], [action], [formaction]")]
  .flatMap(element => ["href", "src", "action", "formaction"].map(name => element.getAttribute(name)))
  .filter(address => address && address.trim().toLowerCase().startsWith("javascript:"))"""
TOO_WIDE = """() => {
  const cut = element => element && (getComputedStyle(element).overflowX !== "visible" || cut(element.parentElement));
  return [...document.querySelectorAll("body *")].filter(element => {
    const {left, right} = element.getBoundingClientRect();
    const overflows = getComputedStyle(element).overflowX === "visible" && left + element.scrollWidth;
    return Math.max(right, overflows) > window.innerWidth + 1 && !cut(element.parentElement);
  }).slice(-3).map(element => element.outerHTML.slice(0, 160)); }"""
SEEN = """() => document.body.innerText + [...document.querySelectorAll("input, textarea")].map(field => field.value)"""


def seen(page: Page) -> str:
    return str(page.evaluate(SEEN))


@pytest.fixture
def hostile(gateway, upstream, admin) -> None:
    seed(upstream.url, admin)


@pytest.mark.parametrize("part", PARTS)
def test_every_page_can_be_used_and_no_name_is_obeyed(hostile, as_admin, watch, part):
    wrong, kinds = {}, set[str]()
    for shown in pages(row_of):
        if part_of(shown) == part and (found := faults(as_admin, watch, shown, kinds)):
            wrong[shown.path] = found
    told = "\n".join(f"{path}\n" + "\n".join(f"    {fault}" for fault in found) for path, found in wrong.items())
    assert not wrong, f"\n{told}"


def test_a_stranger_sees_the_door(page, watch):
    wrong = {path: faults(page, watch, Address(path, path), set()) for path in ("/admin/", "/admin/login/")}
    assert not any(wrong.values()), wrong
    assert "Log in" in seen(page)


# The pages of the API's documentation are drawn by scripts of others: what shows that they are, and their own faults.
DOCUMENTATION = {
    "/docs": (
        ".swagger-ui .opblock-summary",
        ("color-contrast", "nested-interactive"),  # Swagger UI's own colours, and its links within buttons
    ),
    "/redoc": (
        ".api-content h1",
        ("https://cdn.redoc.ly/redoc/logo-mini.svg",),  # its maker's logo: the policy refuses it, and nothing is sent
    ),
}


@pytest.mark.parametrize("path", DOCUMENTATION)
def test_the_documentation_has_no_faults_but_those_of_its_makers(page, watch, path):
    drawn, known = DOCUMENTATION[path]
    page.goto(path)
    page.locator(drawn).first.wait_for()
    found = accessibility_faults(page)
    for size in (WIDE, NARROW):
        page.set_viewport_size(size)
        if is_too_wide(page):
            found.append(f"scrolls sideways: {page.evaluate(TOO_WIDE)}")
    found += watch.troubles
    watch.troubles.clear()
    assert not [fault for fault in found if not any(name in fault for name in known)]
