"""A browser for tests: found on the machine, and watched while it shows pages."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, Response

AXE = (Path(__file__).parent / "axe.js").read_text()
GRAVE = {"serious", "critical"}
HOW_TO_GET_ONE = (
    "No Chromium was found, so no page was looked at in a browser. To get one, on Debian: apt install"
    " chromium-headless-shell; on Ubuntu: snap install chromium; elsewhere put chromium or google-chrome on the PATH."
)


def executable() -> str | None:
    """The shell without windows before all others: it starts quicker, and shows the same."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


@dataclass
class Watch:
    """What went wrong on the pages of a context, and whom they asked for something.

    A test that provokes a refusal takes it off `troubles` when it has seen it.
    """

    origin: str
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def over(self, context: BrowserContext) -> None:
        context.on("request", self._asked)
        context.on("response", self._answered)
        context.on("console", self._said)
        context.on("weberror", lambda error: self.troubles.append(f"script error: {error.error}"))

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.troubles.append(f"asked another host: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 500:
            self.troubles.append(f"{response.status} from {response.url}")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.troubles.append(f"console: {message.text} ({message.location.get('url', '')})")


def accessibility_faults(page: Page, *, only: str | None = None, without: str | None = None) -> list[str]:
    """What axe-core finds serious or critical on the page as it is now; `only` one of its rules, or `without` one."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)  # the policy for scripts of pages says nothing of those of the debugger
    # Without `preload` of style sheets, for which axe puts one into the page, and the policy refuses it.
    options: dict[str, Any] = {"resultTypes": ["violations"], "preload": False}
    if only:
        options["runOnly"] = {"type": "rule", "values": [only]}
    if without:
        options["rules"] = {without: {"enabled": False}}
    found = page.evaluate("options => axe.run(document, options).then(found => found.violations)", options)
    return [
        f"{fault['id']} ({fault['impact']}): {node['html'][:160]} – {' '.join(node['failureSummary'].split())[:240]}"
        for fault in found
        if fault["impact"] in GRAVE
        for node in fault["nodes"][:5]
    ]


def is_too_wide(page: Page) -> bool:
    """Whether the page scrolls sideways, and goes on doing so: charts take a moment to fit."""
    stays = """async () => {
        for (let frame = 0; frame < 30; frame++) {
            if (document.scrollingElement.scrollWidth <= window.innerWidth) return false;
            await new Promise(requestAnimationFrame);
        }
        return true;
    }"""
    return bool(page.evaluate(stays))


def is_drawn(canvas: Locator) -> bool:
    """Whether anything is on the canvas, once it has the time."""
    drawn = """async canvas => {
        for (let frame = 0; frame < 200; frame++) {
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            if (data.some(value => value)) return true;
            await new Promise(requestAnimationFrame);
        }
        return false;
    }"""
    return bool(canvas.evaluate(drawn))
