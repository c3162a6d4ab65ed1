"""A real engine and a real server on an event loop in a thread of its own, with adapters of every kind to be found."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loramux import AsyncLLMEngine, EngineArgs
from loramux.adapters.registry import Patience
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.lora.resolver_policy import ResolverPolicy
from loramux_filesystem import FilesystemLoRAResolver
from served_engine import ServedEngine, serve_engine

MAX_MODEL_LEN = 64
MAX_LORA_RANK = 16
LORA_WAIT_SECONDS = 0.5


class FailingResolver(LoRAResolver):
    """Never has an answer to a name below `slow/`, and breaks for others in a way that tells what no client may see."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if lora_name.startswith("slow/"):
            await asyncio.Event().wait()
        raise OSError(f"canary-bucket/home/canary/{lora_name} refused the canary-key")


def fill_with_adapters(root: Path, make_adapter: Callable[..., Path]) -> None:
    """Put adapters below a folder: two good ones, and one for every way to be refused."""
    good = make_adapter("contract/good", seed=5)
    for name in ("good", "known", "corrupt", "empty-config", "pickled", "other-base"):
        shutil.copytree(good, root / name)
    shutil.copytree(make_adapter("contract/high", rank=4 * MAX_LORA_RANK, seed=6), root / "high-rank")
    weights = (root / "corrupt" / "adapter_model.safetensors").read_bytes()
    (root / "corrupt" / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    (root / "empty-config" / "adapter_config.json").write_text("{}")
    (root / "pickled" / "adapter_model.safetensors").rename(root / "pickled" / "adapter_model.bin")


@contextmanager
def serving_thread(model: Path, adapters: Path, **settings: Any) -> Iterator[ServedEngine]:
    """Serve until the end of the block; `settings` are fields of Server."""
    arguments = EngineArgs(
        model=str(model),
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=4,
        max_lora_rank=MAX_LORA_RANK,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=32,
        kv_cache_memory_bytes=8 * 2**20,
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    resolvers = [
        ActiveResolver("failing", FailingResolver(), ResolverPolicy(names=("down/*",))),
        ActiveResolver("slow", FailingResolver(), ResolverPolicy(names=("slow/*",), timeout_seconds=1.0)),
        ActiveResolver("filesystem", FilesystemLoRAResolver(adapters)),
    ]
    started = threading.Event()
    found: list[ServedEngine] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        patience = Patience(lora_wait_seconds=LORA_WAIT_SECONDS)
        async with serve_engine(engine, model, resolvers=resolvers, settings=settings, patience=patience) as served:
            found.append(served)
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    started.wait()
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
        engine.shutdown()
