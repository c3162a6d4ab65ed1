"""What completions and chats do alike: take the request's id, answer as a stream or whole, settle the parameters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from aiohttp import web

from loramux.adapters.served_adapter import ServedAdapter
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.server.inference.adapter_defaults import AdapterDefaults, defaults_of, naming_defaults
from loramux.server.inference.answer_format import compile_format
from loramux.server.inference.generation import Job, collect
from loramux.server.inference.json_body import respond
from loramux.server.inference.protocol import GenerationRequest
from loramux.server.inference.streaming import Event, stream_events
from loramux.server.observing.exchange import note_request_id
from loramux.server.request_id import adopt_request_id
from loramux.server.state import SERVER, Server


class Prepared(Protocol):
    """A checked request: what the engine is asked, and the shape of the whole answer."""

    @property
    def job(self) -> Job:
        """What the engine is asked."""
        ...

    def whole(self, outputs: Sequence[RequestOutput]) -> Mapping[str, object]:
        """Build the response that is not a stream."""
        ...


Body = TypeVar("Body", bound=GenerationRequest)


async def answer_request(
    request: web.Request,
    body: Body,
    prepared: Callable[[web.Request, Body], AbstractAsyncContextManager[Prepared]],
    events: Callable[[web.Request, Body], AsyncGenerator[Event, None]],
) -> web.StreamResponse:
    """Answer a request whose body is well-formed, in the way that it asks for."""
    server = request.app[SERVER]
    adopt_request_id(request, body.request_id)
    note_request_id(request)
    if body.stream:
        return await stream_events(request, events(request, body), server.in_flight, times=server.stream_times)
    async with server.in_flight.admit(), prepared(request, body) as ready:
        outputs = await collect(server.engine, ready.job)
        return await respond(lambda: ready.whole(outputs), outputs)


async def settle(
    server: Server,
    served: ServedAdapter | None,
    build: Callable[[AdapterDefaults], SamplingParams],
    *,
    format_param: str,
) -> tuple[SamplingParams, AdapterDefaults]:
    """Let the adapter's own defaults count, and compile what the answer is held to. Raises RequestInvalid.

    `format_param` is the field that says what it is held to.
    """
    defaults = await defaults_of(served, server.adapter_defaults)
    with naming_defaults(defaults):
        params = build(defaults)
    await compile_format(server.engine.check_structured_outputs, params.structured_outputs, param=format_param)
    return params, defaults
