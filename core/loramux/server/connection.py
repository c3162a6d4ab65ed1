"""What answers below the handlers: a client that speaks no proper HTTP gets an error of the one shape, too."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from loramux.errors import ConfigInvalid, EngineOverloaded
from loramux.server.connection_limits import ConnectionLimits, Place
from loramux.server.errors import Refused, describe, describe_http
from loramux.server.request_id import HEADER as REQUEST_ID_HEADER

SPARE_SECONDS = 5.0
"""How long a spare connection may take to ask."""


class Runner(web.AppRunner):
    """Runs an application as aiohttp does, but for the connections, for which aiohttp has no setting.

    The paths in `probed` are answered on the spare connections, too.
    """

    def __init__(
        self, app: web.Application, *, limits: ConnectionLimits, probed: Collection[str] = (), **settings: Any
    ) -> None:
        super().__init__(app, **settings)
        self._limits = limits
        self._probed = frozenset(probed)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            _Handler(server.request_handler, self._limits, self._probed),
            limits=self._limits,
            request_factory=server.request_factory,
            **self._kwargs,
        )


@dataclass(frozen=True, slots=True)
class _Handler:
    """What aiohttp answers before any middleware is asked, such as an unknown `Expect`, in the one shape, too."""

    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    limits: ConnectionLimits
    probed: frozenset[str]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, _Connection) and connection.place is not None and connection.place.is_spare:
            return await self._answer_on_spare(request, connection.place)
        return await self._answer(request)

    async def _answer_on_spare(self, request: web.BaseRequest, place: Place) -> web.StreamResponse:
        if request.path not in self.probed:
            return _last_answer(self.limits.refuse("server", place.client))
        response = await self._answer(request)
        response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self.handle(request)
        except web.HTTPException as exc:
            return describe_http(exc, method=request.method, path=request.path).response()


class _Server(web.Server):
    def __init__(self, handler: _Handler, *, limits: ConnectionLimits, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._limits = limits

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._limits, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ("_limits", "place")

    def __init__(self, manager: web.Server, limits: ConnectionLimits, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._limits = limits
        self.place: Place | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or send it away before anything is read."""
        peer = transport.get_extra_info("peername")
        try:
            self.place = self._limits.take(peer[0] if isinstance(peer, tuple) else None)
        except EngineOverloaded as exc:
            super().connection_made(transport)
            assert isinstance(transport, asyncio.Transport)
            transport.write(_refusal(exc))
            transport.close()
            return
        if self.place.is_spare:
            self._keepalive_timeout = SPARE_SECONDS
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let another one have the place."""
        super().connection_lost(exc)
        if self.place is not None:
            self._limits.give_back(self.place)
            self.place = None

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
        return _last_answer(malformed if status == 400 or exc is None else exc)


def check_parser(*, may_be_python: bool) -> None:
    """Raise ConfigInvalid where aiohttp's compiled parser is missing; the other one is slower, and laxer."""
    if HttpRequestParser is HttpRequestParserPy and not may_be_python:
        raise ConfigInvalid(
            "aiohttp's compiled HTTP parser is not there: install a wheel of aiohttp for this platform and unset "
            "AIOHTTP_NO_EXTENSIONS, or give --allow-python-parser"
        )


def _last_answer(fault: BaseException) -> web.Response:
    request_id = uuid.uuid4().hex
    response = describe(fault, request_id=request_id).response()
    response.headers.update({"Server": "loramux", REQUEST_ID_HEADER: request_id})
    response.force_close()
    return response


def _refusal(fault: EngineOverloaded) -> bytes:
    reply = describe(fault, request_id="")
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
