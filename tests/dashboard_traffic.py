"""A real server for a dashboard to show: adapters in every tier, a source that is down, one adapter that is broken."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from safetensors.torch import load_file, save_file

from loramux import AsyncLLMEngine
from loramux.errors import ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.server.startup.launch import EvictionRelay
from served_engine import ServedEngine, serve_engine
from tiny_engines import engine_args, kv_bytes
from tiny_models import build_adapter

WEIGHTS = "adapter_model.safetensors"


class Shelf(LoRAResolver):
    """Knows the names on it."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        folder = self.folders.get(lora_name)
        return None if folder is None else LoRARequest(lora_name, 1, str(folder))


class Outage(LoRAResolver):
    """A source that answers for names with its prefix, if it answered."""

    def __init__(self, prefix: str, reason: str) -> None:
        self.prefix = prefix
        self.reason = reason

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if lora_name.startswith(self.prefix):
            raise ResolverFailed(self.reason, retry_after_seconds=30)
        return None


def build_shelf(model: Path, root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Make one adapter for each name, of ranks 4 to 32 and contents of their own."""
    folders = {}
    patterns = {rank: build_adapter(model, root / f"rank-{rank}", rank=rank, seed=rank) for rank in (4, 8, 16, 32)}
    for number, (name, rank) in enumerate(zip(names, itertools.cycle(patterns), strict=False)):
        folder = folders[name] = root / "shelf" / str(number)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text((patterns[rank] / "adapter_config.json").read_text())
        tensors = load_file(patterns[rank] / WEIGHTS)
        save_file({key: tensor * (1 + number / 1000) for key, tensor in tensors.items()}, folder / WEIGHTS)
    return folders


def break_adapter(folder: Path) -> None:
    """Cut its weights off in the middle."""
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


@asynccontextmanager
async def serve_shelf(
    model: Path,
    folders: Mapping[str, Path],
    *,
    max_loras: int = 4,
    max_cpu_loras: int = 8,
    port: int = 0,
    facts: tuple[tuple[str, str], ...] = (),
) -> AsyncIterator[ServedEngine]:
    """Serve what is on the shelf; `archive/…` is on a source that is down."""
    relay = EvictionRelay()
    args = engine_args(
        model, max_loras=max_loras, max_cpu_loras=max_cpu_loras, kv_cache_memory_bytes=kv_bytes(1024), max_num_seqs=32
    )
    engine = await asyncio.to_thread(AsyncLLMEngine.from_engine_args, args, on_adapter_event=relay)
    resolvers = [
        ActiveResolver("filesystem", Shelf(folders)),
        ActiveResolver("s3", Outage("archive/", "the bucket does not answer: connection refused")),
    ]
    try:
        async with serve_engine(
            engine, model, resolvers=resolvers, relay=relay, port=port, settings={"facts": facts}
        ) as served:
            yield served
    finally:
        await asyncio.to_thread(engine.shutdown)


async def complete(session: aiohttp.ClientSession, url: str, model: str, num_tokens: int = 8) -> int:
    """Ask for one completion; return its status."""
    body = {"model": model, "prompt": "Hello", "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        await response.read()
        return response.status


async def ask_around(url: str, names: Sequence[str], *, num_clients: int, seed: int = 0) -> None:
    """Ask for ever, the first names far more often than the last; cancel it to stop."""
    choose = random.Random(seed)
    weights = [1 / (rank + 1) ** 1.2 for rank in range(len(names))]

    async def client(session: aiohttp.ClientSession) -> None:
        while True:
            (name,) = choose.choices(names, weights)
            await complete(session, url, name, choose.randint(20, 120))

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as clients:
        for _ in range(num_clients):
            clients.create_task(client(session))
