"""A real Chromium with the page of a real controller, and everything that it said about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

STATIC = Path(__file__).parents[2] / "controller" / "web" / "static"

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NOTE_VIOLATIONS = """
    window.violations = [];
    document.addEventListener('securitypolicyviolation', event => window.violations.push(event.violatedDirective));
"""
#: Cytoscape's core, as it registers itself on its container.
CORE = "document.getElementById('graph')._cyreg.cy"
#: Whether anything is painted on any of the canvases.
PAINTED = """() => [...document.querySelectorAll('#graph canvas')].some(canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return data.some((value, index) => index % 4 === 3 && value > 0);
})"""


def built_page() -> Path:
    """The folder of the built page; without it there is nothing to test, and that is no success."""
    if not (STATIC / "index.html").exists():
        pytest.fail("controller/web/static/index.html is missing: build the page with `make setup` (Node.js >= 20.19)")
    return STATIC


@contextmanager
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One tab, and what it asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        page.add_init_script(_NOTE_VIOLATIONS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)

    def _heard(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def _asked(self, request: Request) -> None:
        self.requests.append(f"{request.url} {request.headers.get('referer', '')}")
        self.authorizations.append(request.headers.get("authorization", ""))

    def open(self, url: str, token: str = "") -> None:
        self.page.goto(f"{url}/#token={token}" if token else url)

    def wait_live(self, edges: int = 1) -> None:
        self.page.wait_for_selector("#link[data-state=live]")
        self.wait(f"document.querySelectorAll('#edges button').length >= {edges}")
        self.wait(f"{CORE}.edges().length >= {edges}")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        self.page.wait_for_function(f"() => {condition}")  # as a function: the policy forbids to evaluate text

    def core(self, script: str) -> Any:
        """Ask the drawing: ``script`` begins with a member of Cytoscape's core."""
        return self.page.evaluate(f"{CORE}.{script}")

    def item(self, edge: str) -> Any:
        """The entry of an edge in the list."""
        return self.page.locator(f'#edges button[data-edge="{edge}"]')

    def choose(self, edge: str, title: str) -> None:
        """Click an edge in the list, and wait until it is shown."""
        self.item(edge).click()
        expect(self.page.locator("#details h2")).to_have_text(title)

    @property
    def details(self) -> str:
        return self.page.locator("#details").inner_text()

    def row(self, name: str) -> str:
        """The value beside a name in the details."""
        return self.page.locator(f"#details dt:text-is('{name}') + dd").first.inner_text()

    def click_drawing(self, script: str) -> None:
        """Click where the drawing says that something is, such as ``$id('n shop/cart').renderedPosition()``."""
        place = self.core(script)
        box = self.page.locator("#graph").bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])

    def check_quiet(self) -> None:
        """Nothing was complained of, and nothing broke the content security policy."""
        assert self.complaints == []
        assert self.page.evaluate("window.violations") == []
