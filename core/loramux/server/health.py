"""/health, /health/live and /health/ready: whether the server should be restarted, and whether to send it requests."""

from __future__ import annotations

from aiohttp import web

from loramux.errors import EngineDead
from loramux.server.state import SERVER


async def live(request: web.Request) -> web.Response:
    """Answer while the engine runs; a supervisor restarts what does not."""
    if not request.app[SERVER].engine.is_running:
        raise EngineDead("the engine has stopped")
    return web.Response()


async def ready(request: web.Request) -> web.Response:
    """Answer while new requests are welcome; sources of adapters do not count, what is resident is served without."""
    request.app[SERVER].in_flight.check_accepting()
    return await live(request)
