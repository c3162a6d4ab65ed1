"""The aiohttp application: routes, what surrounds every handler, and how it is run."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from loramux import __version__
from loramux.errors import LoramuxError
from loramux.server.access.auth import check_access
from loramux.server.access.hosts import check_host
from loramux.server.access.limits import RATE_HEADERS, limit_requests
from loramux.server.connection import Runner
from loramux.server.connection_limits import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT, ConnectionLimits
from loramux.server.errors import ErrorReply, describe, describe_http
from loramux.server.inference.chat import create_chat_completion
from loramux.server.inference.chat_protocol import ChatCompletionRequest
from loramux.server.inference.completions import create_completion
from loramux.server.inference.model_choice import choice_of
from loramux.server.inference.models import get_model, list_models
from loramux.server.inference.protocol import CompletionRequest
from loramux.server.inference.tokenize import DetokenizeRequest, TokenizeBody, detokenize, tokenize
from loramux.server.observing.access_log import ACCESS_LOG, AccessLogger, ConnectionLogger
from loramux.server.observing.event_loop_lag import watch_event_loop
from loramux.server.observing.exchange import note_error
from loramux.server.observing.observe import observe
from loramux.server.operations import health, openapi
from loramux.server.operations.adapter_list import list_adapters
from loramux.server.operations.adapter_protocol import LoadAdapterRequest, MoveAliasRequest, WhichAdapterRequest
from loramux.server.operations.adapters import (
    explain_adapter,
    load_adapter,
    move_alias,
    pin_adapter,
    unload_adapter,
    unpin_adapter,
)
from loramux.server.operations.dashboard import send_updates, show_dashboard, show_state
from loramux.server.operations.dashboard_feed import FEED, DashboardFeed
from loramux.server.operations.scrape import show_metrics
from loramux.server.request_id import HEADER as REQUEST_ID_HEADER
from loramux.server.request_id import request_id_of
from loramux.server.routes import EVENTS, HTML, JSON, ROUTES, TEXT, Routes
from loramux.server.state import SERVER, Server

MAX_BODY_BYTES = 4 * 1024**2
KEEPALIVE_SECONDS = 30  # also how long a client may take to send its headers; aiohttp's own default is an hour
SHUTDOWN_SECONDS = 2.0  # what is still open after InFlight.drain has no more to say

logger = logging.getLogger(__name__)


def build_app(server: Server) -> web.Application:
    """Put the routes together."""
    middlewares = [observe, _answer_errors, check_host(server.allowed_hosts), check_access(server.api_keys)]
    middlewares.append(limit_requests(server.limiter))
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
    app[SERVER] = server
    app[ROUTES] = Routes(app.router)
    app.on_response_prepare.append(_sign)
    app.cleanup_ctx.append(watch_event_loop)
    app[FEED] = DashboardFeed(server)
    app.on_shutdown.append(app[FEED].close)
    _add_routes(app[ROUTES], server)
    app[ROUTES].check()
    app[openapi.DOCUMENT] = openapi.document(app[ROUTES], needs_key=server.api_keys.are_required)
    return app


def _add_routes(routes: Routes, server: Server) -> None:
    for path in ("/health", "/health/live"):
        routes.get(path, health.live, needs="public", answers=())
    routes.get("/health/ready", health.ready, needs="public", answers=())
    routes.get("/health/sources", health.sources, needs="admin")
    for path, handler, kind in (
        ("/dashboard", show_dashboard, HTML),
        ("/dashboard/state", show_state, JSON),
        ("/dashboard/events", send_updates, EVENTS),
    ):
        routes.get(path, handler, needs="admin", answers=(kind,), is_page=True)
    routes.get("/metrics", show_metrics, needs="metrics", answers=(TEXT,))
    routes.get("/version", _version, needs="any key")
    routes.get("/openapi.json", openapi.describe_api, needs="infer")
    routes.get("/v1/models", list_models, needs="infer")
    routes.get("/v1/models/{model:.+}", get_model, needs="infer")
    generated = (JSON, EVENTS)
    routes.post("/tokenize", tokenize, needs="infer", body=TokenizeBody)
    routes.post("/detokenize", detokenize, needs="infer", body=DetokenizeRequest)
    routes.post("/v1/completions", create_completion, needs="infer", body=CompletionRequest, answers=generated)
    routes.post(
        "/v1/chat/completions", create_chat_completion, needs="infer", body=ChatCompletionRequest, answers=generated
    )
    if server.allow_runtime_updates:
        said = (TEXT,)
        routes.post("/v1/load_lora_adapter", load_adapter, needs="admin", body=LoadAdapterRequest, answers=said)
        routes.post("/v1/unload_lora_adapter", unload_adapter, needs="admin", body=WhichAdapterRequest, answers=said)
        routes.post("/v1/pin_lora_adapter", pin_adapter, needs="admin", body=WhichAdapterRequest)
        routes.post("/v1/unpin_lora_adapter", unpin_adapter, needs="admin", body=WhichAdapterRequest)
        routes.get("/v1/lora_adapters", list_adapters, needs="admin")
        routes.post("/v1/move_lora_alias", move_alias, needs="admin", body=MoveAliasRequest)
        routes.get("/v1/explain_lora_adapter", explain_adapter, needs="admin", query=("lora_name",))


def make_runner(
    app: web.Application,
    *,
    max_connections: int = MAX_CONNECTIONS,
    max_per_client: int = MAX_CONNECTIONS_PER_CLIENT,
) -> web.AppRunner:
    """Make what serves the application: a client that leaves cancels its handler, and bodies are never inflated."""
    series = app[SERVER].metrics.connections
    return Runner(
        app,
        limits=ConnectionLimits(series, max_connections=max_connections, max_per_client=max_per_client),
        probed={route.path for route in app[ROUTES] if route.needs == "public"},
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        auto_decompress=False,
        logger=ConnectionLogger(logger),
        access_log_class=AccessLogger,
        access_log=ACCESS_LOG,
    )


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn everything that goes wrong into the one shape of errors; only what observes it all is around this."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        return _respond(describe_http(exc, method=request.method, path=request.path))
    except LoramuxError as exc:
        return _respond(describe(exc, request_id=request_id_of(request)))
    except ConnectionError:  # the client is gone: there is nobody to tell
        raise
    except Exception as exc:
        logger.exception("request failed request_id=%s", request_id_of(request))
        return _respond(describe(exc, request_id=request_id_of(request)))


def _respond(reply: ErrorReply) -> web.Response:
    note_error(reply.code)
    return reply.response()


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "loramux"
    response.headers[REQUEST_ID_HEADER] = request_id_of(request)
    response.headers.update(request.get(RATE_HEADERS, {}))
    if not request.app[SERVER].in_flight.is_ready:  # so that no client keeps a connection that is about to go
        response.headers["Connection"] = "close"
    if response.headers.get("Connection") == "close":
        response.force_close()
    choice = choice_of(request)
    if choice is not None:
        response.headers.update(choice.headers())


async def _version(_: web.Request) -> web.Response:
    """Say which loramux this is."""
    return web.json_response({"version": __version__})
