"""Adapters that are missing or broken disturb nobody: all the while every good request gets its right answer."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from loramux.lora.plugin_manager import ActiveResolver
from loramux_filesystem import FilesystemLoRAResolver
from served_engine import ServedEngine, serve_engine

NUM_BAD = 25
GOOD = ("tiny", "good-0", "good-1", "good-2", "good-3")
NUM_READERS = 3  # of each good model
PROMPTS = ("hello", "The quick brown fox", "SELECT name FROM people WHERE age")


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncLLMEngine]:
    arguments = EngineArgs(
        model=str(tiny_llama),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=3,
        kv_cache_memory_bytes=8 * 2**20,
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    yield engine
    engine.shutdown()


@pytest.fixture
async def served(
    engine: AsyncLLMEngine, tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[ServedEngine]:
    """Four good adapters, more than fit into memory at once, and as many broken ones as there are places to cut."""
    for seed, name in enumerate(GOOD[1:]):
        shutil.copytree(make_adapter(f"bad-adapters/{name}", seed=seed), tmp_path / name)
    for number in range(NUM_BAD):
        folder = shutil.copytree(tmp_path / "good-0", tmp_path / f"corrupt-{number}")
        weights = (folder / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(weights[: len(weights) * number // NUM_BAD])
    resolver = ActiveResolver("filesystem", FilesystemLoRAResolver(tmp_path))
    async with serve_engine(engine, tiny_llama, resolvers=[resolver]) as served:
        yield served


async def test_every_good_request_is_right_while_missing_and_corrupt_adapters_are_asked_for(
    engine: AsyncLLMEngine, served: ServedEngine
) -> None:
    async with aiohttp.ClientSession(served.url, connector=aiohttp.TCPConnector(limit=0)) as session:
        expected = {(model, prompt): await ask(session, model, prompt) for model in GOOD for prompt in PROMPTS}
        assert len(set(expected.values())) == len(expected)
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(read_until(is_over, session, expected, model))
                for model in GOOD
                for _ in range(NUM_READERS)
            ]
            bad = [
                tasks.create_task(ask(session, f"{kind}-{number}", "hello"))
                for number in range(NUM_BAD)
                for kind in ("missing", "corrupt")
            ]
            refusals = await asyncio.gather(*bad)
            is_over.set()

    assert refusals == [(404, "model_not_found"), (400, "adapter_invalid")] * NUM_BAD
    assert [wrong for reader in readers for wrong in reader.result()[1]] == []
    assert min(reader.result()[0] for reader in readers) > 0
    counters = engine.counters()
    counters.pop("free_blocks")
    assert not any(counters.values()), counters
    assert engine.is_running


async def read_until(
    is_over: asyncio.Event, session: aiohttp.ClientSession, expected: dict[tuple[str, str], object], model: str
) -> tuple[int, list[object]]:
    """Ask again and again; return how many answers came, and the wrong ones."""
    num_answers, wrong = 0, []
    while not is_over.is_set():
        prompt = PROMPTS[num_answers % len(PROMPTS)]
        answer = await ask(session, model, prompt)
        num_answers += 1
        if answer != expected[model, prompt]:
            wrong.append((model, prompt, answer))
    return num_answers, wrong


async def ask(session: aiohttp.ClientSession, model: str, prompt: str) -> object:
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    async with session.post("/v1/completions", json=body) as response:
        answer = await response.json()
        return answer["choices"][0]["text"] if response.status == 200 else (response.status, answer["error"]["code"])
