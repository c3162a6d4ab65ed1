"""One line per request; only what the server knows, nothing that a caller could forge or would keep secret."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError

from loramux.server.request_id import request_id_of

_ROUTE = web.RequestKey("route", str)

_MALFORMED = (HttpProcessingError, PayloadEncodingError)


def note_route(request: web.Request) -> None:
    """Keep where the request goes, for its line in the log."""
    resource = request.match_info.route.resource
    if resource is not None:
        request[_ROUTE] = resource.canonical


class ConnectionLogger(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs below the handlers; a client that speaks no proper HTTP is no error of the server."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **options: Any) -> None:
        """Log one line without a traceback, or what the client sent, for malformed requests; others as they are."""
        if isinstance(exc_info, _MALFORMED):
            self.info("malformed HTTP request error=%s", type(exc_info).__name__)
        else:
            self.error(msg, *args, exc_info=exc_info, **options)


class AccessLogger(AbstractAccessLogger):
    """Log method, route (not the raw address), status, duration and request id.

    What is no HTTP at all never gets to a route, so that only `note_route` makes a request known here.
    """

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line."""
        route = "-"
        request_id = "-"
        if isinstance(request, web.Request):
            route = request.get(_ROUTE, route)
            request_id = request_id_of(request)
        self.logger.info(
            "%s %s status=%d milliseconds=%.1f request_id=%s",
            request.method,
            route,
            response.status,
            time * 1000,
            request_id,
        )

    @property
    def enabled(self) -> bool:
        """Whether lines go anywhere."""
        return self.logger.isEnabledFor(logging.INFO)
