"""Write docs/dashboard.png: the dashboard of a server under traffic like a small team's. Run by `make screenshot`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import aiohttp
from playwright.async_api import async_playwright

from browser.conftest import ARGUMENTS, CHROMIUM
from dashboard_traffic import ask_around, break_adapter, build_shelf, complete, serve_shelf
from tiny_models import build_model

PICTURE = Path(__file__).parents[1] / "docs" / "dashboard.png"
VIEW = {"width": 1200, "height": 900}
WATCH_MILLISECONDS = 40_000
BUSY = [
    "sql-lora", "json-lora", "support/german", "sentiment-lora", "summaries@v3", "legal/contracts", "code-review",
    "support/french", "medical/triage", "search/rerank", "mail/tone", "translate/de-en", "extract/invoices", "router",
]  # fmt: skip
QUIET = [f"tenant-{number:03}/assistant" for number in range(150)]
FACTS = (
    ("model", "a tiny random Llama, served as tiny"),
    ("device", "cpu, float32"),
    ("adapters", "8 slots, 24 in host memory, rank up to 64"),
    ("resolver", "filesystem: /srv/adapters"),
    ("", "s3: s3://adapters/{lora_name}"),
    ("access", "with an API key"),
)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await take_picture(Path(folder))


async def take_picture(folder: Path) -> None:
    model = build_model(folder / "model")
    shelf = build_shelf(model, folder / "adapters", [*BUSY, *QUIET, "legal/patents"])
    break_adapter(shelf["legal/patents"])
    async with serve_shelf(model, shelf, max_loras=8, max_cpu_loras=24, facts=FACTS) as served:
        async with aiohttp.ClientSession() as session:
            for name in [*QUIET, "legal/patents", *reversed(BUSY)]:
                await complete(session, served.url, name)
        await served.registry.pin("sql-lora")
        asking = asyncio.create_task(ask_around(served.url, BUSY, num_clients=5))
        try:
            await photograph(served.url)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def photograph(url: str) -> None:
    async with async_playwright() as playwright, aiohttp.ClientSession() as session:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport=VIEW, reduced_motion="reduce")  # nothing is caught in its flight
        await page.goto(f"{url}/dashboard")
        await page.wait_for_timeout(WATCH_MILLISECONDS)
        for _ in range(6):
            await complete(session, url, "archive/2019")
        await page.wait_for_timeout(2_000)
        await page.locator("#failures summary").nth(1).click()
        await page.mouse.move(0, 0)
        await page.screenshot(path=PICTURE, full_page=True)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
