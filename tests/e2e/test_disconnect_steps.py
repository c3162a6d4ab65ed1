"""From the moment that the server notices a client's leaving, its rows are gone within two steps of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from served_engine import ServedEngine, serve_engine

HELD = ("used_blocks", "leases", "running", "waiting", "slots_in_use")
MOST_STEPS = 2
SECONDS = 20.0


class Stepper:
    """Stands before the engine's steps: lets them pass one by one, and counts them."""

    def __init__(self, engine: AsyncLLMEngine) -> None:
        self._advance = engine._engine.advance
        self._may_pass = threading.Semaphore(0)
        self._stands_there = threading.Semaphore(0)
        self._is_open = False
        self.num_steps = 0
        engine._engine.advance = self._pass_one_by_one  # type: ignore[method-assign]

    def open(self) -> None:
        """Let all steps pass from now on."""
        self._is_open = True
        self._may_pass.release()

    async def arrives(self) -> None:
        """Wait until the engine wants to take its next step."""
        assert await asyncio.to_thread(self._stands_there.acquire, timeout=SECONDS)

    async def step(self) -> None:
        """Let one step pass, and wait until the engine wants to take the one after it."""
        self._may_pass.release()
        await self.arrives()

    def _pass_one_by_one(self) -> Any:
        if not self._is_open:
            self._stands_there.release()
            self._may_pass.acquire()
        self.num_steps += 1
        return self._advance()


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncLLMEngine]:
    arguments = EngineArgs(
        model=str(tiny_llama),
        enable_lora=True,
        max_num_seqs=8,
        max_num_batched_tokens=16,
        kv_cache_memory_bytes=8 * 2**20,
        enable_prefix_caching=False,
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    yield engine
    engine.shutdown()


@pytest.fixture
async def served(
    engine: AsyncLLMEngine, tiny_llama: Path, make_adapter: Callable[..., Path]
) -> AsyncIterator[ServedEngine]:
    async with serve_engine(engine, tiny_llama) as served:
        await served.registry.add("sql", str(make_adapter("disconnect/left", seed=0)), origin="static")
        yield served


@pytest.fixture
async def stepper(engine: AsyncLLMEngine, served: ServedEngine) -> AsyncIterator[Stepper]:
    stepper = Stepper(engine)
    yield stepper
    stepper.open()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "num_steps"), [pytest.param("a", 5, id="while decoding"), pytest.param("a" * 300, 3, id="in prefill")]
)
async def test_a_client_that_leaves_is_gone_from_the_engine_within_two_steps(
    engine: AsyncLLMEngine, served: ServedEngine, stepper: Stepper, prompt: str, num_steps: int, stream: bool
) -> None:
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(ask(session, served.url, model="sql", prompt=prompt, stream=stream))
        await stepper.arrives()
        for _ in range(num_steps):
            await stepper.step()
        assert engine.counters()["running"] == 1

        call.cancel()

    await until(lambda: len(engine._inbox) > 0)  # the server has noticed
    num_before = stepper.num_steps
    while is_anything_held(engine):
        await stepper.step()
    assert stepper.num_steps - num_before <= MOST_STEPS


async def test_a_client_that_leaves_while_its_adapter_is_read_waits_no_more(
    engine: AsyncLLMEngine, served: ServedEngine, stepper: Stepper
) -> None:
    stepper.open()
    cache = engine._engine.adapters.host_cache
    await engine.remove_lora(1)
    read, may_read = cache._load, threading.Event()
    cache._load = lambda request: (may_read.wait(SECONDS), read(request))[1]
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(ask(session, served.url, model="sql", prompt="a", stream=True))
        await until(lambda: engine.counters()["waiting"] == 1)
        num_before = stepper.num_steps

        call.cancel()

    await until(lambda: engine.counters()["waiting"] == 0)
    assert stepper.num_steps - num_before <= MOST_STEPS
    may_read.set()
    await until(lambda: not is_anything_held(engine))


def is_anything_held(engine: AsyncLLMEngine) -> bool:
    counters = engine.counters()
    return any(counters[name] for name in HELD)


async def ask(session: aiohttp.ClientSession, url: str, **body: object) -> None:
    body = {"max_tokens": 100, "ignore_eos": True, **body}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        await response.read()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not is_true():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0)
