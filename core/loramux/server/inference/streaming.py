"""Server-sent events: the answer piece by piece, and a proper end whatever happens.

Headers wait for the first event, so a request that fails before it has a normal error response. Where nothing comes for
a while, because an adapter is on its way or a prompt is long, a comment is sent: proxies and clients that would give up
wait on, and the headers are out by then. After them a failure is an error event without `[DONE]`: clients take a stream
that just ends for a complete answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from loramux.errors import LoramuxError
from loramux.server.errors import describe
from loramux.server.in_flight import InFlight
from loramux.server.observing.exchange import note_error
from loramux.server.request_id import request_id_of

HEARTBEAT = b": ping\n\n"

SMALL_NBYTES = 32 * 1024
"""Less than a connection takes before it asks to wait, which is 64 KiB."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Event = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """heartbeat_seconds: silence after which a comment is sent; proxies commonly give up after 30 or 60 seconds.

    write_seconds: a client that takes nothing for so long is gone, or is holding our memory.
    """

    heartbeat_seconds: float = 10.0
    write_seconds: float = 30.0


logger = logging.getLogger(__name__)


async def stream_events(
    request: web.Request,
    events: AsyncGenerator[Event, None],
    in_flight: InFlight,
    *,
    times: StreamTimes,
) -> web.StreamResponse:
    """Send all events and `[DONE]`; raises what fails before anything was sent."""
    stream = _EventStream(request, times.write_seconds)
    try:
        async with in_flight.admit(), stream.beating(times.heartbeat_seconds), aclosing(events):
            async for event in events:
                await stream.send(_encoded(event))
            await stream.send(b"data: [DONE]\n\n")
    except ConnectionError:
        stream.abort()
        raise
    except Exception as exc:  # the border of a request whose status is already sent
        if not stream.is_open:
            raise
        await stream.send_last(_encoded(_error_event(exc, request)))
    await stream.response.write_eof()
    return stream.response


class _EventStream:
    """One response; its headers go out with the first thing that is sent."""

    def __init__(self, request: web.Request, write_seconds: float) -> None:
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
            }
        )
        self.is_open = False
        self._request = request
        self._write_seconds = write_seconds
        self._opening = asyncio.Lock()
        self._num_sent = 0

    async def send(self, data: bytes) -> None:
        """Write whole events; raises ConnectionError when the client is gone, or takes nothing any more."""
        if not self.is_open:
            await self._open()
        self._num_sent += 1
        if self._takes_at_once(data):
            await self.response.write(data)
            return
        try:
            async with asyncio.timeout(self._write_seconds) as limit:
                await self.response.write(data)
        except TimeoutError as exc:
            if limit.expired():
                raise ConnectionAbortedError("the client reads nothing") from exc
            raise

    async def send_last(self, data: bytes) -> None:
        """Write what a failed stream ends with; a client that does not take even that is dropped."""
        try:
            await self.send(data)
        except ConnectionError:
            self.abort()
            raise

    @asynccontextmanager
    async def beating(self, seconds: float) -> AsyncGenerator[None, None]:
        """Send a comment whenever nothing else was sent for so long."""
        heart = asyncio.create_task(self._beat(seconds))
        try:
            yield
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)

    def _takes_at_once(self, data: bytes) -> bool:
        """Whether nothing is waited for: a clock beside every event would cost as much as making the event."""
        transport = self._request.transport
        return transport is not None and not transport.get_write_buffer_size() and len(data) < SMALL_NBYTES

    def abort(self) -> None:
        """Drop the connection; closing it would wait for the client to read what it does not read."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _open(self) -> None:
        async with self._opening:
            if not self.is_open:
                await self.response.prepare(self._request)
                self.is_open = True

    async def _beat(self, seconds: float) -> None:
        try:
            while True:
                num_sent = self._num_sent
                await asyncio.sleep(seconds)
                if num_sent == self._num_sent:
                    await self.send(HEARTBEAT)
        except ConnectionError:
            self.abort()  # which cancels the handler


def _error_event(error: Exception, request: web.Request) -> Event:
    request_id = request_id_of(request)
    if not isinstance(error, LoramuxError):
        logger.error("stream failed request_id=%s", request_id, exc_info=error)
    reply = describe(error, request_id=request_id)
    note_error(reply.code)
    return reply.body


def _encoded(event: Event) -> bytes:
    return b"data: " + _encode(event).encode() + b"\n\n"
