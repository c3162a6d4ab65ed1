from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from loramux.errors import ConfigInvalid
from loramux.metrics.metrics import Metrics
from loramux.metrics.state import EngineState, ServerState
from loramux.server import connection
from loramux.server.app import build_app, make_runner
from loramux.server.connection import Runner, check_parser
from loramux.server.connection_limits import SPARE_CONNECTIONS, ConnectionLimits, Place

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PROBE = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = 1.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Connection]]


class Elsewhere(ConnectionLimits):
    """Takes all clients for one on another machine."""

    def take(self, address: str | None) -> Place:
        return super().take("192.0.2.1")


@asynccontextmanager
async def served(limits: ConnectionLimits) -> AsyncIterator[Connect]:
    """Serve, and give what opens a connection."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def connect() -> Connection:
        connections.append(await asyncio.open_connection(host, port))
        return connections[-1]

    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/health", answer)
    runner = Runner(app, limits=limits, probed=["/health"])
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    connections: list[Connection] = []
    try:
        yield connect
    finally:
        for _, writer in connections:
            writer.close()
        await runner.cleanup()


async def hold(connect: Connect, count: int) -> list[Connection]:
    """Connections that have been answered once and stay open."""
    held = [await connect() for _ in range(count)]
    for reader, writer in held:
        writer.write(REQUEST)
        await asyncio.wait_for(reader.readuntil(b"hello"), SECOND)
    return held


async def ask(connect: Connect, request: bytes = b"") -> tuple[bytes, bytes]:
    """The head and the body of what the server says until it closes the connection."""
    reader, writer = await connect()
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), SECOND)).partition(b"\r\n\r\n")
    return head, body


def assert_refused(head: bytes, body: bytes) -> None:
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert b"X-Request-Id: " in head
    assert json.loads(body)["error"]["code"] == "server_overloaded"


def of(metrics: Metrics, name: str, *labels: str) -> float:
    """The value of one series."""
    families = metrics.families(ServerState(base_model_name="tiny", engine=EngineState()))
    samples = [sample for family in families for sample in family.samples]
    (value,) = [
        sample.value
        for sample in samples
        if sample.name == f"loramux:{name}" and tuple(sample.labels.values()) == labels
    ]
    return value


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECOND):
        while not is_so():  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0)


async def test_one_connection_too_many_is_sent_away_and_makes_room_again() -> None:
    metrics = Metrics()
    async with served(ConnectionLimits(metrics.connections, max_connections=2)) as connect:
        held = await hold(connect, 2)
        assert_refused(*await ask(connect, REQUEST))

        for _, writer in held:
            writer.close()
        await until(lambda: of(metrics, "open_connections") == 0)
        await hold(connect, 2)

        assert of(metrics, "open_connections") == 2
    assert of(metrics, "refused_connections_total", "server") == 1
    assert of(metrics, "refused_connections_total", "client") == 0


async def test_a_full_server_still_answers_probes_once_each() -> None:
    async with served(ConnectionLimits(Metrics().connections, max_connections=1)) as connect:
        await hold(connect, 1)
        for _ in range(2 * SPARE_CONNECTIONS):
            head, body = await ask(connect, PROBE)

            assert head.startswith(b"HTTP/1.1 200 ")
            assert body == b"hello"


async def test_with_the_spare_connections_taken_nothing_is_read_any_more() -> None:
    async with served(ConnectionLimits(Metrics().connections, max_connections=1)) as connect:
        await hold(connect, 1)
        for _ in range(SPARE_CONNECTIONS):
            await connect()

        assert_refused(*await ask(connect))


async def test_a_spare_connection_that_does_not_ask_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SPARE_SECONDS", 0.01)
    async with served(ConnectionLimits(Metrics().connections, max_connections=1)) as connect:
        await hold(connect, 1)

        assert await ask(connect) == (b"", b"")


async def test_one_client_cannot_have_all_connections(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    async with served(Elsewhere(metrics.connections, max_per_client=2)) as connect:
        await hold(connect, 2)
        for _ in range(3):
            assert_refused(*await ask(connect))

    assert of(metrics, "refused_connections_total", "client") == 3
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "connections refused num=1 since the last such line; the latest one client=192.0.2.1: it has all its "
        "--max-connections-per-client 2"
    ]


async def test_the_probes_of_a_server_are_answered_when_it_is_full(client) -> None:
    runner = make_runner(build_app(client.server), max_connections=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    _, writer = await asyncio.open_connection(host, port)
    try:
        statuses = {
            path: (await client.session.get(f"http://{host}:{port}{path}")).status
            for path in ("/health", "/health/live", "/health/ready", "/v1/models", "/metrics")
        }
    finally:
        writer.close()
        await runner.cleanup()

    assert statuses == {
        "/health": 200,
        "/health/live": 200,
        "/health/ready": 200,
        "/v1/models": 503,
        "/metrics": 503,
    }


def test_without_the_compiled_parser_nothing_is_served_unless_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parser(may_be_python=False)
    monkeypatch.setattr(connection, "HttpRequestParser", connection.HttpRequestParserPy)

    with pytest.raises(ConfigInvalid, match="--allow-python-parser"):
        check_parser(may_be_python=False)
    check_parser(may_be_python=True)
