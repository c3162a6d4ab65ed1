"""A real engine behind a real HTTP server in this process, so that a test can look at its insides."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web

from loramux import AsyncLLMEngine
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import Fetcher, ResolverChain
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.plugin_manager import ActiveResolver
from loramux.metrics.metrics import Metrics
from loramux.server.app import build_app, make_runner
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.startup.launch import EvictionRelay
from loramux.server.state import Server


@dataclass(frozen=True)
class ServedEngine:
    """Where it listens, and what answers there."""

    url: str
    engine: AsyncLLMEngine
    registry: AdapterRegistry
    server: Server


@asynccontextmanager
async def serve_engine(
    engine: AsyncLLMEngine,
    model: Path,
    *,
    resolvers: Sequence[ActiveResolver] = (),
    fetcher: Fetcher | None = None,
    relay: EvictionRelay | None = None,
    metrics: Metrics | None = None,
    hooks: PluginHooks | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    port: int = 0,
    **registry_options: Any,
) -> AsyncIterator[ServedEngine]:
    """Serve on a loopback port, a free one unless it is given, until the end; the base model is called "tiny".

    The engine is the caller's. `settings` are more fields of Server.
    """
    metrics = metrics or Metrics()
    chain = ResolverChain(resolvers, fetcher, on_step=metrics.adapters.count_step)
    registry = AdapterRegistry(
        ["tiny"], chain, engine.load_adapter, engine.remove_lora, hooks, memory=engine, **registry_options
    )
    if relay is not None:
        relay.connect(registry)
    server = Server(
        engine=engine,
        tokenizer=engine.tokenizer,
        vocabulary=Vocabulary(engine.tokenizer.token_text),
        registry=registry,
        base_model_names=("tiny",),
        model_root=str(model),
        max_model_len=engine.max_model_len,
        created=int(time.time()),
        metrics=metrics,
        hooks=hooks or PluginHooks(),
        **settings,
    )
    runner = make_runner(build_app(server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    try:
        yield ServedEngine(f"http://127.0.0.1:{runner.addresses[0][1]}", engine, registry, server)
    finally:
        await runner.cleanup()
        await registry.close()
        await chain.close()
