"""DashboardFeed: sends the dashboard's state once a second to all who watch; costs nothing when nobody does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress

from aiohttp import web

from loramux.server.access.auth import is_still_admin
from loramux.server.errors import Refused
from loramux.server.operations.dashboard_state import dashboard_state, now
from loramux.server.state import Server

MAX_WATCHERS = 16
INTERVAL_SECONDS = 1.0
WRITE_TIMEOUT_SECONDS = 10.0
RETRY_MILLISECONDS = 1_000
"""After so long a browser that has lost the server asks again."""


class DashboardFeed:
    """Belongs to the event loop of its server; `close` ends every stream."""

    def __init__(self, server: Server, *, max_watchers: int = MAX_WATCHERS, interval: float = INTERVAL_SECONDS) -> None:
        self._server = server
        self._max_watchers = max_watchers
        self._interval = interval
        self._closing = asyncio.Event()
        self._latest: dict[str, tuple[float, bytes]] = {}
        self.num_watchers = 0

    async def close(self, _: web.Application | None = None) -> None:
        """Let every stream end now."""
        self._closing.set()

    async def send(self, request: web.Request, query: str, *, headers: Mapping[str, str]) -> web.StreamResponse:
        """Send the state, again whenever it has changed, until the client leaves; raises Refused when too many watch.

        When nothing has changed, "tick" tells the time.
        """
        with self._watching():
            response = web.StreamResponse(
                headers={**headers, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
            )
            await response.prepare(request)
            if request.method == "HEAD":
                return response
            await _write(response, f"retry: {RETRY_MILLISECONDS}\n\n".encode())
            async for event in self._events(query):
                if not is_still_admin(request, self._server.api_keys):
                    break
                await _write(response, event)
            await response.write_eof()
            return response

    @contextmanager
    def _watching(self) -> Iterator[None]:
        if self.num_watchers >= self._max_watchers:
            raise Refused("server_overloaded", f"The dashboard is open {self.num_watchers} times already.")
        self.num_watchers += 1
        try:
            yield
        finally:
            self.num_watchers -= 1
            if not self.num_watchers:
                self._latest.clear()

    async def _events(self, query: str) -> AsyncIterator[bytes]:
        sent = None
        while not self._closing.is_set():
            state = self._state(query)
            if state == sent:
                yield b'event: tick\ndata: {"time":%.3f}\n\n' % now()
            else:
                yield b'event: state\ndata: {"time":%.3f,%s\n\n' % (now(), state)
            sent = state
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._closing.wait()

    def _state(self, query: str) -> bytes:
        """The state without its opening brace, made once for all who watch the same."""
        current = asyncio.get_running_loop().time()
        for old, (made, _) in list(self._latest.items()):
            if current - made > self._interval / 2:
                del self._latest[old]
        if query not in self._latest:
            state = json.dumps(dashboard_state(self._server, query), separators=(",", ":")).encode()
            self._latest[query] = (current, state[1:])
        return self._latest[query][1]


FEED = web.AppKey("dashboard_feed", DashboardFeed)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Write, unless the client takes nothing for so long that it must be gone."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
            await response.write(data)
    except TimeoutError as exc:
        raise ConnectionAbortedError("the client reads nothing") from exc
