"""What answers below the handlers: a client that speaks no proper HTTP gets an error of the one shape, too."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from loramux.server.errors import Refused, describe, describe_http
from loramux.server.request_id import HEADER as REQUEST_ID_HEADER


class Runner(web.AppRunner):
    """Runs an application as aiohttp does, but for the connections, for which aiohttp has no setting."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(_Handler(server.request_handler), request_factory=server.request_factory, **self._kwargs)


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
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

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
