"""GET /metrics: the server's figures for Prometheus, in the text format or as OpenMetrics."""

from __future__ import annotations

import asyncio

from aiohttp import web

from loramux.metrics.state import ServerState
from loramux.server.state import SERVER, Server


async def show_metrics(request: web.Request) -> web.Response:
    """Answer in the format of the Accept header; with a thousand adapters this takes long, so a thread writes it.

    One at a time: requests need the threads, too.
    """
    server = request.app[SERVER]
    accept = request.headers.get("Accept", "")
    async with server.metrics.turn_to_expose:
        exposition = await asyncio.to_thread(server.metrics.expose, look_at(server), accept)
    return web.Response(body=exposition.body, headers={"Content-Type": exposition.content_type})


def look_at(server: Server) -> ServerState:
    """Say what the server holds now; on its event loop."""
    return ServerState(
        base_model_name=server.base_model_names[0],
        engine=server.engine.state(),
        num_served_adapters=len(server.registry.adapters()),
        num_loading_adapters=server.registry.num_loading,
        num_in_flight=len(server.in_flight),
        disk=None if server.store is None else server.store.state(),
        sources=dict(server.registry.sources()),
    )
