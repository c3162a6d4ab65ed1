from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from loramux.errors import ConfigInvalid
from loramux.server import connection
from loramux.server.connection import Runner, check_parser

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_one_connection_too_many_is_sent_away_and_makes_room_again() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, max_connections=2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        for reader, writer in held:
            writer.write(REQUEST)
            await reader.readuntil(b"hello")

        reader, writer = await asyncio.open_connection(host, port)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        for _, other in held:
            other.close()
            await other.wait_closed()
        while runner.server is not None and runner.server.connections:  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(REQUEST)
        await reader.readuntil(b"hello")
        writer.close()
    finally:
        await runner.cleanup()

    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert json.loads(body)["error"]["code"] == "server_overloaded"


def test_without_the_compiled_parser_nothing_is_served_unless_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parser(may_be_python=False)
    monkeypatch.setattr(connection, "HttpRequestParser", connection.HttpRequestParserPy)

    with pytest.raises(ConfigInvalid, match="--allow-python-parser"):
        check_parser(may_be_python=False)
    check_parser(may_be_python=True)
