"""Debian's Chromium, driven by Playwright; what it must never see is collected and looked at in the end."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".npm-tools/node_modules/axe-core/axe.min.js"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 300_000
expect.set_options(timeout=PATIENCE_MS)
LANES = "What every client did"
SERIOUS = ("serious", "critical")

_POINTS = """(title) => {
  const card = document.querySelector(`section[aria-label="${title}"] .nicegui-echart`);
  const chart = getElement(Number(card.id.slice(1))).chart;
  return chart.getOption().series.map((each) => ({name: each.name, data: each.data}));
}"""


class Visitor:
    """One browser window."""

    def __init__(self, browser: Browser, page: Page) -> None:
        self.browser = browser
        self.page = page
        self.url = ""
        self.errors: list[str] = []
        self.outside: list[str] = []
        self._is_expected: Callable[[str], bool] = lambda error: False
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, url: str) -> None:
        here = self.url.partition("://")[2]
        if not url.startswith(("data:", "blob:", f"http://{here}", f"ws://{here}", "chrome")):
            self.outside.append(url)

    def expects(self, *parts: str) -> None:
        """Let pass what the browser says aloud of a trouble that the test itself makes, whenever it says it."""
        self._is_expected = lambda error: any(part in error for part in parts)

    async def open(self, path: str = "/") -> Page:
        """Open a page of the manager and wait until it is live."""
        await self.page.goto(self.url + path, timeout=PATIENCE_MS)
        await self.page.wait_for_function("() => window.did_handshake === true || window.socket?.connected")
        return self.page

    async def sees(self, text: str) -> None:
        await expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE_MS)

    async def sees_count(self, word: str, count: int) -> None:
        await expect(self.page.locator(f'[data-count="{word}"]')).to_have_text(str(count), timeout=PATIENCE_MS)

    async def draws(self, title: str, is_it: Callable[[dict[str, list[Any]]], bool]) -> dict[str, list[Any]]:
        """Wait until a chart shows what is looked for, and return all that it shows, by series."""
        shown: dict[str, list[Any]] = {}
        try:
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while not is_it(shown):
                    await asyncio.sleep(0.1)
                    shown = {each["name"]: each["data"] for each in await self.page.evaluate(_POINTS, title)}
        except TimeoutError:
            raise AssertionError(f"{title} shows {shown}") from None
        return shown

    async def check_accessibility(self) -> None:
        """Run axe-core over what is open (WCAG 2.1 A and AA); nothing serious may be found."""
        assert AXE.exists(), "make test-browser installs axe-core (tests/browser/install-tools.sh)"
        await self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = await self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        faults = [
            {"id": each["id"], "help": each["help"], "nodes": [node["html"][:200] for node in each["nodes"]][:5]}
            for each in found["violations"]
            if each["impact"] in SERIOUS
        ]
        assert not faults, f"{self.page.url}: {json.dumps(faults, indent=1)}"

    def check(self) -> None:
        assert [error for error in self.errors if not self._is_expected(error)] == []
        assert self.outside == []


@asynccontextmanager
async def visiting(*, flags: tuple[str, ...] = (), **context: Any) -> AsyncIterator[Visitor]:
    """A fresh browser; nothing of it is kept."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "make test-browser installs chromium (tests/browser/install-tools.sh)"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *flags])
        try:
            opened = await browser.new_context(**{"viewport": WIDE, "service_workers": "block", **context})
            yield Visitor(browser, await opened.new_page())
        finally:
            await browser.close()
