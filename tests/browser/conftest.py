"""A headless Chromium, and a page that fails its test for every error, and for every request to another place."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

from dashboard_traffic import build_shelf

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
window.numFlights = 0;
new MutationObserver((records) => {
  for (const record of records) for (const node of record.addedNodes)
    if (node.classList?.contains("ghost")) window.numFlights += 1;
}).observe(document, { childList: true, subtree: true });
"""

OpenPage = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
def shelf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six adapters by name."""
    return build_shelf(tiny_llama, tmp_path_factory.mktemp("shelf"), list("abcdef"))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open an address; `allowed` are parts of console messages that the test provokes."""
    pages: list[Page] = []
    troubles: list[str] = []

    async def open_page(url: str, *, allowed: tuple[str, ...] = (), **options: Any) -> Page:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        page = await context.new_page()
        pages.append(page)
        origin = urlsplit(url)[:2]

        def note(what: str, text: str) -> None:
            if not any(part in text for part in allowed):
                troubles.append(f"{what}: {text}")

        page.on("console", lambda message: note("console", message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: note("error", str(error)))
        page.on("request", lambda request: _check_place(request.url, origin, note))
        await page.add_init_script(NOTE_VIOLATIONS)
        await page.goto(url)
        return page

    yield open_page
    for page in pages:
        assert await page.evaluate("window.violations ?? []") == []
    assert troubles == []


def _check_place(url: str, origin: tuple[str, ...], note: Callable[[str, str], None]) -> None:
    if not url.startswith("data:") and urlsplit(url)[:2] != origin:
        note("request to another place", url)
