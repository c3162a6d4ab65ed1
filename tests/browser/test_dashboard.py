"""The dashboard as its readers see it, in a real browser over a real server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Locator, Page, expect

from dashboard_traffic import ask_around, break_adapter, build_shelf, complete, serve_shelf
from fake_engine import ByteTokenizer, FakeEngine
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.server.access.auth import ApiKeys
from loramux.server.app import build_app, make_runner
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.operations.dashboard_state import MAX_SHOWN
from loramux.server.state import Server

pytestmark = pytest.mark.browser

PATIENCE_MILLISECONDS = 20_000
ATTACK = "<img src=x onerror='window.hacked = true'><script>window.hacked = true</script>"


class Hostile(LoRAResolver):
    """Knows every name; its places, and what it says of `down/…`, are markup."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if lora_name.startswith("down/"):
            raise ResolverFailed(ATTACK)
        return LoRARequest(lora_name, 1, f"/{ATTACK}/{lora_name}", revision=ATTACK)


@asynccontextmanager
async def fake_server(**settings: object) -> AsyncIterator[tuple[str, Server, FakeEngine]]:
    """A server that knows every name and answers at once; `found` is its resolver's name."""
    engine = FakeEngine()
    chain = ResolverChain([ActiveResolver("<b>found</b>", Hostile())])
    registry = AdapterRegistry(["llama"], chain, engine.load_adapter, engine.remove_lora, memory=engine)
    server = Server(
        engine=engine,
        tokenizer=ByteTokenizer(),
        vocabulary=Vocabulary(ByteTokenizer().token_text),
        registry=registry,
        base_model_names=("llama",),
        model_root="org/llama",
        max_model_len=100,
        created=int(time.time()),
        **settings,  # type: ignore[arg-type]
    )
    runner = make_runner(build_app(server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", server, engine
    finally:
        await runner.cleanup()
        await registry.close()
        await chain.close()


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE_MILLISECONDS)


def in_tier(page: Page, tier: str, name: str) -> Locator:
    return page.locator(f"ul[data-tier={tier}] .adapter").filter(has=page.get_by_text(name, exact=True))


async def test_an_adapter_moves_from_the_disk_to_host_memory_and_into_a_slot(
    tiny_llama: Path, shelf: dict[str, Path], open_page
) -> None:
    async with serve_shelf(tiny_llama, shelf, max_loras=2, max_cpu_loras=4) as served:
        async with aiohttp.ClientSession() as session:
            for name in shelf:
                assert await complete(session, served.url, name) == 200
            page = await open_page(f"{served.url}/dashboard")
            await expect(in_tier(page, "disk", "a")).to_be_visible()

            await served.registry.pin("a")
            await expect(in_tier(page, "host", "a")).to_contain_text("pinned")

            assert await complete(session, served.url, "a") == 200
            await expect(in_tier(page, "slot", "a")).to_contain_text("2 requests")
        assert await page.evaluate("window.numFlights") >= 2
        await expect(page.locator(".ghost")).to_have_count(0)
        assert await served.engine.list_loras()


async def test_rates_rise_and_fall_with_the_traffic(tiny_llama: Path, shelf: dict[str, Path], open_page) -> None:
    async with serve_shelf(tiny_llama, shelf) as served:
        page = await open_page(f"{served.url}/dashboard")
        await expect(page.locator("#tokens-rate")).to_have_text("0.0")

        asking = asyncio.create_task(ask_around(served.url, list(shelf), num_clients=4))
        await expect(page.locator("#tokens-rate")).to_have_text(re.compile("[1-9]"))
        await expect(page.locator("#running")).not_to_have_text("0")
        await expect(page.locator("#traffic tr").first.locator("td").first).to_have_text("a")
        await expect(page.locator(".adapter.busy .rate").first).to_contain_text("tok/s")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        await expect(page.locator("#tokens-rate")).to_have_text("0.0")
        await expect(page.locator("#running")).to_have_text("0")


async def test_a_source_that_fails_and_a_broken_adapter_are_shown_with_their_trace(
    tiny_llama: Path, tmp_path: Path, open_page
) -> None:
    folders = build_shelf(tiny_llama, tmp_path, ["broken"])
    break_adapter(folders["broken"])
    async with serve_shelf(tiny_llama, folders) as served, aiohttp.ClientSession() as session:
        page = await open_page(f"{served.url}/dashboard")
        assert await complete(session, served.url, "broken") == 400
        for _ in range(5):
            assert await complete(session, served.url, "archive/old") == 503

        outage = page.locator("#failures details").filter(has_text="archive/old").filter(has_text="connection refused")
        await expect(outage).to_contain_text("5 times")
        broken = page.locator("#failures details").filter(has_text="broken")
        await broken.locator("summary").focus()
        await page.keyboard.press("Enter")

        await expect(broken.locator(".steps li")).to_have_count(2)
        await expect(broken.locator(".steps li").first).to_contain_text("filesystem")
        await expect(broken.locator(".steps li").last).to_contain_text("truncated or padded")
        await expect(page.locator("#chain li").last).to_contain_text("left alone for")


async def test_what_comes_from_outside_is_only_ever_text(open_page) -> None:
    async with fake_server(facts=((ATTACK, ATTACK),)) as (url, server, _), aiohttp.ClientSession() as session:
        await complete(session, url, "found")
        await complete(session, url, "down/x")
        server.registry._loader.failures.note(ATTACK, ResolverFailed(ATTACK))
        page = await open_page(f"{url}/dashboard")

        await in_tier(page, "host", "found").click()
        await expect(page.locator("#details-facts")).to_contain_text(ATTACK)
        await page.keyboard.press("Escape")
        for place in ("#failures", "#facts"):
            await expect(page.locator(place)).to_contain_text(ATTACK)
        await expect(page.locator("#chain")).to_contain_text("<b>found</b>")

        assert await page.evaluate("window.hacked") is None
        assert await page.locator("img, main script, #chain b").count() == 0


async def test_the_page_finds_a_server_that_was_started_again(
    tiny_llama: Path, shelf: dict[str, Path], open_page
) -> None:
    async with serve_shelf(tiny_llama, shelf) as served, aiohttp.ClientSession() as session:
        page = await open_page(f"{served.url}/dashboard", allowed=("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED"))
        await complete(session, served.url, "a")
        await expect(page.locator("#status")).to_have_text("live")
        await expect(page.locator("#served")).to_have_text("1")
    await expect(page.locator("#status")).to_have_text("connection lost, trying again")

    async with serve_shelf(tiny_llama, shelf, port=urlsplit(served.url).port or 0):
        await expect(page.locator("#status")).to_have_text("live")
        await expect(page.locator("#served")).to_have_text("0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_is_as_light_or_dark_as_the_reader_wants_it(open_page, scheme: str) -> None:
    async with fake_server() as (url, _, _):
        page = await open_page(f"{url}/dashboard", color_scheme=scheme)

        red = await page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    assert (red < 64) == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
async def test_no_width_needs_sideways_scrolling(open_page, width: int) -> None:
    async with fake_server(facts=(("model", "x" * 300),)) as (url, server, _), aiohttp.ClientSession() as session:
        await complete(session, url, "x" * 255)
        server.registry._loader.failures.note("y" * 255, ResolverFailed("z" * 900))
        page = await open_page(f"{url}/dashboard", viewport={"width": width, "height": 800})
        await expect(in_tier(page, "host", "x" * 255)).to_be_visible()
        await page.locator("#failures summary").first.click()

        assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_everything_can_be_reached_by_keyboard(open_page) -> None:
    async with fake_server() as (url, _, _), aiohttp.ClientSession() as session:
        await complete(session, url, "first")
        await complete(session, url, "second")
        page = await open_page(f"{url}/dashboard")
        await expect(in_tier(page, "host", "second")).to_be_visible()

        await page.keyboard.press("/")
        await page.keyboard.type("sec")
        await expect(page.locator("#matches")).to_have_text("1 adapter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")

        await expect(page.locator("#details-title")).to_have_text("second")
        await page.keyboard.press("Escape")
        await expect(page.locator("#details")).to_be_hidden()


async def test_among_five_thousand_adapters_the_page_stays_small_and_finds_each(open_page) -> None:
    async with fake_server() as (url, server, engine):
        for number in range(5_000):
            async with server.registry.use(f"team-{number % 50}/adapter-{number:04}"):
                pass
        engine.in_slots.update(range(4_900, 4_908))
        for number in range(1, 4_000):
            del engine.loaded[number]
        page = await open_page(f"{url}/dashboard")
        await expect(page.locator("#served")).to_have_text("5,000")
        assert await page.locator(".adapter").count() == 8 + MAX_SHOWN["host"] + MAX_SHOWN["disk"]

        await page.locator("#query").fill("adapter-0123")

        await expect(page.locator("#matches")).to_have_text("1 adapter")
        await expect(in_tier(page, "disk", "team-23/adapter-0123")).to_be_visible()
        await expect(page.locator(".adapter")).to_have_count(1)


async def test_a_reader_with_a_key_gets_in_and_one_without_does_not(open_page) -> None:
    async with fake_server(api_keys=ApiKeys.from_keys(["secret"])) as (url, _, _):
        page = await open_page(f"{url}/dashboard", http_credentials={"username": "me", "password": "secret"})
        await expect(page.locator("#status")).to_have_text("live")

        with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):
            await open_page(f"{url}/dashboard", allowed=("401",))
