"""One line per request; only what the server knows, nothing that a caller could forge or would keep secret."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError

from loramux.server.observing.exchange import EXCHANGE, Exchange
from loramux.server.request_id import request_id_of

ACCESS_LOG = logging.getLogger("loramux.access")

_MALFORMED = (HttpProcessingError, PayloadEncodingError)


class ConnectionLogger(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp logs below the handlers; a client that speaks no proper HTTP is no error of the server."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **options: Any) -> None:
        """Log one line without a traceback, or what the client sent, for malformed requests; others as they are."""
        if isinstance(exc_info, _MALFORMED):
            self.info("malformed HTTP request error=%s", type(exc_info).__name__)
        else:
            self.error(msg, *args, exc_info=exc_info, **options)


class AccessLogger(AbstractAccessLogger):
    """Writes the line of each response that was sent; requests whose client left get theirs elsewhere."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line; `time` is in seconds."""
        log_exchange(self.logger, request, response.status, time)

    @property
    def enabled(self) -> bool:
        """Whether lines go anywhere."""
        return self.logger.isEnabledFor(logging.INFO)


def log_exchange(logger: logging.Logger, request: web.BaseRequest, status: int, seconds: float) -> None:
    """Log method, route (not the raw address), status, duration and what came of it, as text and as fields.

    What is answered before it gets to a route has no exchange; what is no HTTP at all not even an id.
    """
    exchange = request.get(EXCHANGE) or Exchange(request_id_of(request) if isinstance(request, web.Request) else "-")
    fields = {
        "method": request.method,
        "route": exchange.route,
        "status": status,
        "milliseconds": round(seconds * 1000, 1),
        "request_id": exchange.request_id,
        "adapter": exchange.adapter_name or "-",
        "principal": exchange.principal_id or "-",
        "prompt_tokens": exchange.num_prompt_tokens,
        "completion_tokens": exchange.num_completion_tokens,
    }
    logger.info(
        "%(method)s %(route)s status=%(status)d milliseconds=%(milliseconds).1f request_id=%(request_id)s "
        "adapter=%(adapter)s principal=%(principal)s prompt_tokens=%(prompt_tokens)d "
        "completion_tokens=%(completion_tokens)d",
        fields,
        extra=fields,
    )
