"""Server-sent events: the answer piece by piece, and a proper end whatever happens.

Headers wait for the first event, so a request that fails before it has a normal error response. Afterwards a failure
is an error event without `[DONE]`: clients take a stream that just ends for a complete answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from aiohttp import web

from loramux.errors import LoramuxError
from loramux.server.errors import describe
from loramux.server.exchange import note_error
from loramux.server.in_flight import InFlight
from loramux.server.request_id import request_id_of

WRITE_TIMEOUT_SECONDS = 30
"""A client that takes nothing for so long is gone, or is holding our memory."""

Event = Mapping[str, object]

logger = logging.getLogger(__name__)


async def stream_events(
    request: web.Request, events: AsyncGenerator[Event, None], in_flight: InFlight
) -> web.StreamResponse:
    """Send all events and `[DONE]`; raises what fails before the first event."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
        }
    )
    try:
        async with in_flight.admit(), aclosing(events):
            async for event in events:
                if not response.prepared:
                    await response.prepare(request)
                await _write(response, _encoded(event))
            await _write(response, b"data: [DONE]\n\n")
    except ConnectionError:
        if request.transport is not None:
            request.transport.abort()  # closing would wait for the client to read what it does not read
        raise
    except Exception as exc:  # the border of a request whose status is already sent
        if not response.prepared:
            raise
        await _write(response, _encoded(_error_event(exc, request)))
    await response.write_eof()
    return response


def _error_event(error: Exception, request: web.Request) -> Event:
    request_id = request_id_of(request)
    if not isinstance(error, LoramuxError):
        logger.error("stream failed request_id=%s", request_id, exc_info=error)
    reply = describe(error, request_id=request_id)
    note_error(reply.code)
    return reply.body


def _encoded(event: Event) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS) as limit:
            await response.write(data)
    except TimeoutError as exc:
        if limit.expired():
            raise ConnectionAbortedError("the client reads nothing") from exc
        raise
