"""A crowd that asks for an adapter nobody has loaded yet, and a source that never answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from loramux.adapters.registry import Patience
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.lora.resolver_policy import ResolverPolicy
from served_engine import ServedEngine, serve_engine

CROWD = 1_000
PATIENCE_SECONDS = 60.0


class Gated(LoRAResolver):
    """Finds `cold` once the gate is open; never answers for names that start with `hanging`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_asked = 0
        self.gate = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        self.num_asked += 1
        self.loop = asyncio.get_running_loop()
        if lora_name.startswith("hanging"):
            await asyncio.Event().wait()
        if lora_name != "cold":
            return None
        await self.gate.wait()
        return LoRARequest(lora_name, 1, str(self.folder))

    def open(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gate.set)


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncLLMEngine]:
    engine = AsyncLLMEngine.from_engine_args(
        EngineArgs(model=str(tiny_llama), enable_lora=True, max_loras=2, kv_cache_memory_bytes=8 * 2**20)
    )
    yield engine
    engine.shutdown()


@pytest.fixture
def resolver(make_adapter: Callable[..., Path]) -> Gated:
    return Gated(make_adapter("cold-crowd/cold", seed=3))


@pytest.fixture
async def served(engine: AsyncLLMEngine, tiny_llama: Path, resolver: Gated) -> AsyncIterator[ServedEngine]:
    policy = ResolverPolicy(timeout_seconds=PATIENCE_SECONDS, unknown_seconds=0)
    active = ActiveResolver("gated", resolver, policy)
    patience = Patience(lora_wait_seconds=PATIENCE_SECONDS)
    async with serve_engine(engine, tiny_llama, resolvers=[active], patience=patience) as served:
        yield served


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def ask(session: aiohttp.ClientSession, url: str, model: str) -> Any:
    body = {"model": model, "prompt": "hello", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        answer = await response.json()
        return answer["choices"][0]["text"] if response.status == 200 else (response.status, answer["error"]["code"])


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_true():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)


async def test_of_a_thousand_first_requests_those_that_stay_share_one_load_and_get_their_answers(
    served: ServedEngine, resolver: Gated, session: aiohttp.ClientSession
) -> None:
    in_flight = served.server.in_flight
    crowd = [asyncio.create_task(ask(session, served.url, "cold")) for _ in range(CROWD)]
    await until(lambda: len(in_flight) == CROWD)
    for caller in crowd[::2]:
        caller.cancel()
    await until(lambda: len(in_flight) == CROWD / 2)
    resolver.open()
    answers = await asyncio.gather(*crowd[1::2])
    alone = await ask(session, served.url, "cold")
    of_base = await ask(session, served.url, "tiny")

    assert set(answers) == {alone} != {of_base}
    assert resolver.num_asked == 1
    await until(lambda: len(in_flight) == 0)
    assert_nothing_is_left(served)


async def test_a_source_that_hangs_holds_up_nobody_but_who_asks_it(
    served: ServedEngine, resolver: Gated, session: aiohttp.ClientSession, make_adapter: Callable[..., Path]
) -> None:
    await served.registry.add("resident", str(make_adapter("cold-crowd/resident", seed=4)))
    hanging = [asyncio.create_task(ask(session, served.url, f"hanging/{index}")) for index in range(50)]
    await until(lambda: resolver.num_asked == 50)

    answers = [await ask(session, served.url, "resident") for _ in range(20)]

    assert len(set(answers)) == 1 and isinstance(answers[0], str)
    assert not any(call.done() for call in hanging)
    for call in hanging:
        call.cancel()
    await served.registry.close()
    assert len(served.registry._flights) == 0


async def test_who_asks_a_source_that_hangs_is_told_so_in_time(
    engine: AsyncLLMEngine, tiny_llama: Path, resolver: Gated, session: aiohttp.ClientSession
) -> None:
    impatient = ActiveResolver("gated", resolver, ResolverPolicy(timeout_seconds=0.2))
    async with serve_engine(engine, tiny_llama, resolvers=[impatient]) as served:
        assert await ask(session, served.url, "hanging/source") == (503, "adapter_source_unavailable")
    patient = ActiveResolver("gated", resolver, ResolverPolicy(timeout_seconds=PATIENCE_SECONDS))
    waiting = Patience(lora_wait_seconds=0.2)
    async with serve_engine(engine, tiny_llama, resolvers=[patient], patience=waiting) as served:
        assert await ask(session, served.url, "hanging/request") == (503, "adapter_loading")
        assert len(served.registry._flights) == 1  # the work goes on


def assert_nothing_is_left(served: ServedEngine) -> None:
    counters = served.engine.counters()
    assert {name: counters[name] for name in ("used_blocks", "leases", "running", "waiting")} == {
        "used_blocks": 0,
        "leases": 0,
        "running": 0,
        "waiting": 0,
    }
    assert len(served.registry._flights) == 0
    generations = served.registry._generations
    generations.check_integrity()
    assert set(generations._by_id) == {adapter.id for adapter in served.registry.adapters()}
    assert all(record.num_uses == 0 for record in generations._by_id.values())
