"""A real server over a fake engine, on a free loopback port."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fake_engine import ByteTokenizer, FakeEngine
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.metrics.metrics import Metrics
from loramux.server.app import build_app, make_runner
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.state import Server


class FoundResolver(LoRAResolver):
    """Knows names that start with `found/`; those that start with `down/` make it fail."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if lora_name.startswith("down/"):
            raise ResolverFailed("secret-bucket is down", retry_after_seconds=7.2)
        return LoRARequest(lora_name, 1, f"/adapters/{lora_name}") if lora_name.startswith("found/") else None


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A response, read to its end."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The payloads of the stream, `[DONE]` as it is."""
        payloads = [part.removeprefix("data: ") for part in self.text.split("\n\n") if part]
        return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


@dataclasses.dataclass(frozen=True, slots=True)
class Client:
    """Talks to one server; `server` is its insides, `statuses` those of all its responses so far."""

    session: aiohttp.ClientSession
    url: str
    server: Server
    statuses: list[int]

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.url + path, **options) as response:
            return Reply(response.status, response.headers, await response.text())

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: object, **options: Any) -> Reply:
        return await self.request("POST", path, json=body, **options)

    async def complete(self, **body: object) -> Reply:
        return await self.post("/v1/completions", {"prompt": "hi", **body})

    async def chat(self, content: object = "hi", **body: object) -> Reply:
        return await self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **body})


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def registry(engine: FakeEngine, metrics: Metrics) -> AsyncIterator[AdapterRegistry]:
    chain = ResolverChain([ActiveResolver("found", FoundResolver())], on_step=metrics.adapters.count_step)
    registry = AdapterRegistry(
        ["llama", "base"], chain, load=engine.load_adapter, unload=engine.remove_lora, memory=engine
    )
    yield registry
    await registry.close()
    await chain.close()


@pytest.fixture
async def start(
    engine: FakeEngine, registry: AdapterRegistry, metrics: Metrics
) -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """Start a server with settings of its own."""
    runners: list[web.AppRunner] = []
    sessions: list[aiohttp.ClientSession] = []

    async def start(**settings: Any) -> Client:
        server = Server(
            engine=engine,
            tokenizer=ByteTokenizer(),
            vocabulary=Vocabulary(ByteTokenizer().token_text),
            registry=registry,
            base_model_names=("llama", "base"),
            model_root="org/llama",
            max_model_len=100,
            created=1_700_000_000,
            metrics=metrics,
            **settings,
        )
        statuses: list[int] = []

        async def count(_: web.Request, response: web.StreamResponse) -> None:
            statuses.append(response.status)

        app = build_app(server)
        app.on_response_prepare.append(count)
        runner = make_runner(app)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sessions.append(aiohttp.ClientSession())
        return Client(sessions[-1], f"http://127.0.0.1:{runner.addresses[0][1]}", server, statuses)

    yield start
    for session in sessions:
        await session.close()
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def client(start: Callable[..., Awaitable[Client]]) -> Client:
    return await start()


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    """What looks like an adapter from outside; the fake engine does not read it."""
    folder = tmp_path / "roots" / "sql"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder
