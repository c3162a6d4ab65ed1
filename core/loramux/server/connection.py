"""What answers below the handlers: a client that speaks no proper HTTP gets an error of the one shape, too."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from loramux.errors import ConfigInvalid, EngineOverloaded
from loramux.server.errors import Refused, describe, describe_http
from loramux.server.request_id import HEADER as REQUEST_ID_HEADER

MAX_CONNECTIONS = 2000


class Runner(web.AppRunner):
    """Runs an application as aiohttp does, but for the connections, for which aiohttp has no setting."""

    def __init__(self, app: web.Application, *, max_connections: int = MAX_CONNECTIONS, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._max_connections = max_connections

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            _Handler(server.request_handler),
            max_connections=self._max_connections,
            request_factory=server.request_factory,
            **self._kwargs,
        )


@dataclass(frozen=True, slots=True)
class _Handler:
    """What aiohttp answers before any middleware is asked, such as an unknown `Expect`, in the one shape, too."""

    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self.handle(request)
        except web.HTTPException as exc:
            return describe_http(exc, method=request.method, path=request.path).response()


class _Server(web.Server):
    def __init__(self, handler: _Handler, *, max_connections: int, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._max_connections = max_connections

    @property
    def is_full(self) -> bool:
        """Whether the newest connection is one too many."""
        return len(self._connections) > self._max_connections

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or send it away before anything is read."""
        super().connection_made(transport)
        if isinstance(self._manager, _Server) and self._manager.is_full:
            assert isinstance(transport, asyncio.Transport)
            transport.write(_full())
            transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read, without repeating any of it; aiohttp's own answer logs and is replaced."""
        super().handle_error(request, status, exc, message)  # raises where a response is under way already
        malformed = Refused("malformed_request", "The request is not valid HTTP/1.1.")
        request_id = uuid.uuid4().hex
        response = describe(malformed if status == 400 or exc is None else exc, request_id=request_id).response()
        response.headers.update({"Server": "loramux", REQUEST_ID_HEADER: request_id})
        response.force_close()
        return response


def check_parser(*, may_be_python: bool) -> None:
    """Raise ConfigInvalid where aiohttp's compiled parser is missing; the other one is slower, and laxer."""
    if HttpRequestParser is HttpRequestParserPy and not may_be_python:
        raise ConfigInvalid(
            "aiohttp's compiled HTTP parser is not there: install a wheel of aiohttp for this platform and unset "
            "AIOHTTP_NO_EXTENSIONS, or give --allow-python-parser"
        )


def _full() -> bytes:
    reply = describe(EngineOverloaded("too many connections"), request_id="")
    body = json.dumps(reply.body).encode()
    headers = {
        **reply.headers,
        "Server": "loramux",
        REQUEST_ID_HEADER: uuid.uuid4().hex,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {reply.status} Service Unavailable", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
