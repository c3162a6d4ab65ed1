"""/health and what is below it: whether to restart the server, whether to send it requests, and how its sources do."""

from __future__ import annotations

from aiohttp import web

from loramux.errors import EngineDead, EngineOverloaded
from loramux.server.in_flight import draining
from loramux.server.state import SERVER, Engine

LONGEST_STEP_SECONDS = 30.0
MAX_WAITING_BATCHES = 4
"""With so many full batches waiting, new requests are better off elsewhere."""


async def live(request: web.Request) -> web.Response:
    """Answer while the event loop and the engine run; a supervisor restarts what does not."""
    _check(request.app[SERVER].engine)
    return web.Response()


async def ready(request: web.Request) -> web.Response:
    """Answer while new requests are welcome; sources of adapters do not count, what is resident is served without."""
    server = request.app[SERVER]
    if not server.in_flight.is_ready:
        raise draining()
    _check(server.engine)
    state = server.engine.state()
    if state.num_waiting >= min(MAX_WAITING_BATCHES * state.max_num_seqs, server.max_waiting):
        raise EngineOverloaded(f"{state.num_waiting} requests are waiting already")
    return web.Response()


async def sources(request: web.Request) -> web.Response:
    """Tell which resolvers are asked now, and for how long the others are left alone after repeated failures."""
    states = request.app[SERVER].registry.sources()
    return web.json_response(
        {
            "sources": [
                {"name": name, "state": "paused" if seconds else "asked", "retry_after_seconds": round(seconds, 1)}
                for name, seconds in states
            ]
        }
    )


def _check(engine: Engine) -> None:
    if not engine.is_running:
        raise EngineDead("the engine has stopped")
    if engine.seconds_in_step >= LONGEST_STEP_SECONDS:
        raise EngineDead(f"the engine has been at one step for {engine.seconds_in_step:.0f} s")
