"""What is done with every exchange when it has ended: it is counted and told to plugins, and to the log if need be."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from loramux.server.observing.access_log import ACCESS_LOG, log_exchange
from loramux.server.observing.exchange import CLIENT_LEFT, EXCHANGE, Exchange
from loramux.server.state import SERVER, Server

COMPLETION_ROUTES = frozenset({"/v1/completions", "/v1/chat/completions"})

logger = logging.getLogger(__name__)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Follow a request from its beginning to its end; outermost, so that nothing is missed."""
    server = request.app[SERVER]
    exchange = request[EXCHANGE] = Exchange.of(request, server.traffic)
    with exchange.as_current():
        try:
            response = await handler(request)
            exchange.status = response.status
        except (asyncio.CancelledError, ConnectionError):
            exchange.status = CLIENT_LEFT
            log_exchange(ACCESS_LOG, request, exchange.status, exchange.completion().seconds)
            raise
        finally:
            _finish(server, request.method, exchange)
    return response


def _finish(server: Server, method: str, exchange: Exchange) -> None:
    server.metrics.requests.count_http(method, exchange.route, exchange.status)
    if exchange.route in COMPLETION_ROUTES and method == "POST":
        server.metrics.requests.count_completion(exchange.completion())
        server.hooks.request_finished(exchange.record())
