"""A server in this process, over an engine of the caller's, so that both can be measured side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from loramux import AsyncLLMEngine
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.lora.request import LoRARequest
from loramux.server.app import build_app, make_runner
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.state import Server

BASE_NAME = "base"


@dataclass(frozen=True, slots=True)
class OwnServer:
    """Where it listens on the loopback address, and its adapters as the engine knows them."""

    port: int
    adapters: Mapping[str, LoRARequest]


@asynccontextmanager
async def own_server(engine: AsyncLLMEngine, folders: Mapping[str, Path]) -> AsyncIterator[OwnServer]:
    """Serve the base model and some adapters until the end."""
    chain = ResolverChain([])
    registry = AdapterRegistry([BASE_NAME], chain, engine.load_adapter, engine.remove_lora, memory=engine)
    server = Server(
        engine=engine,
        tokenizer=engine.tokenizer,
        vocabulary=Vocabulary(engine.tokenizer.token_text, engine.tokenizer.token_bytes),
        registry=registry,
        base_model_names=(BASE_NAME,),
        model_root=BASE_NAME,
        max_model_len=engine.max_model_len,
        created=0,
    )
    runner = make_runner(build_app(server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    try:
        served = {name: await registry.add(name, str(folder)) for name, folder in folders.items()}
        yield OwnServer(runner.addresses[0][1], {name: one.lora_request for name, one in served.items()})
    finally:
        await runner.cleanup()
        await registry.close()
        await chain.close()
