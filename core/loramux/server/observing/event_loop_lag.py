"""EventLoopLag: how late the event loop runs what is due, sampled ten times a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from loramux.server.state import SERVER

INTERVAL_SECONDS = 0.1


class EventLoopLag:
    """Observes from its making until `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observe: Callable[[float], object]) -> None:
        self._loop = loop
        self._observe = observe
        self._schedule()

    def stop(self) -> None:
        """Observe no more."""
        self._handle.cancel()

    def _schedule(self) -> None:
        self._due = self._loop.time() + INTERVAL_SECONDS
        self._handle = self._loop.call_at(self._due, self._wake)

    def _wake(self) -> None:
        self._observe(max(0.0, self._loop.time() - self._due))
        self._schedule()


async def watch_event_loop(app: web.Application) -> AsyncIterator[None]:
    """Measure the lag while the application is served."""
    lag = EventLoopLag(asyncio.get_running_loop(), app[SERVER].metrics.event_loop_lag.observe)
    yield
    lag.stop()
