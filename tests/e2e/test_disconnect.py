"""A client that leaves takes everything with it: blocks, slot and lease are free again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import openai
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from served_engine import serve_engine

HELD = ("used_blocks", "leases", "running", "waiting")
SECONDS = 20.0


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncLLMEngine]:
    arguments = EngineArgs(
        model=str(tiny_llama),
        enable_lora=True,
        max_loras=1,
        kv_cache_memory_bytes=8 * 2**20,
        enable_prefix_caching=False,
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    yield engine
    engine.shutdown()


@pytest.fixture
async def url(engine: AsyncLLMEngine, tiny_llama: Path, make_adapter: Callable[..., Path]) -> AsyncIterator[str]:
    async with serve_engine(engine, tiny_llama) as served:
        for seed, name in enumerate(("left", "right")):
            await served.registry.add(name, str(make_adapter(f"disconnect/{name}", seed=seed)), origin="static")
        yield served.url


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_blocks_slot_and_lease(engine: AsyncLLMEngine, url: str, stream: bool) -> None:
    free_blocks = engine.counters()["free_blocks"]
    async with aiohttp.ClientSession() as session:
        calls = [asyncio.create_task(_ask(session, url, model, stream)) for model in ("left", "right", "tiny")]
        await _until(engine, lambda counters: counters["running"] > 0)
        for call in calls:
            call.cancel()

    await _until(engine, lambda counters: not any(counters[name] for name in HELD))
    assert engine.counters()["free_blocks"] == free_blocks
    assert engine.counters()["slots_in_use"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_official_client_frees_them_too(engine: AsyncLLMEngine, url: str, stream: bool) -> None:
    free_blocks = engine.counters()["free_blocks"]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        request = {"model": "left", "prompt": "a", "max_tokens": 400, "extra_body": {"ignore_eos": True}}
        call = asyncio.create_task(client.completions.create(**request, stream=stream))
        await _until(engine, lambda counters: counters["running"] > 0)
        if stream:
            await (await call).close()
        else:
            call.cancel()

        await _until(engine, lambda counters: not any(counters[name] for name in HELD))

    assert engine.counters()["free_blocks"] == free_blocks


async def _ask(session: aiohttp.ClientSession, url: str, model: str, stream: bool) -> None:
    body = {"model": model, "prompt": ["a", "b"], "max_tokens": 400, "ignore_eos": True, "stream": stream}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        await response.read()


async def _until(engine: AsyncLLMEngine, is_reached: Callable[[dict[str, int]], bool]) -> None:
    """Go around through the engine thread, one step at a time, until it is so."""
    async with asyncio.timeout(SECONDS):
        while not is_reached(engine.counters()):
            await engine.abort("nobody")
