"""A JSON response; one that is large because of its log-probabilities is built and encoded off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from aiohttp import web

from loramux.outputs import RequestOutput

LARGE_NUM_LOGPROBS = 128
"""Tokens with log-probabilities above which a body takes longer than other requests should wait."""

_DEPTH_OF_TOKENS = 5  # body, choices, choice, logprobs, content


async def respond(build: Callable[[], Mapping[str, object]], outputs: Sequence[RequestOutput]) -> web.Response:
    """Build the body of a response from these outputs and encode it."""
    if _num_logprobs(outputs) <= LARGE_NUM_LOGPROBS:
        return web.json_response(build())
    return await respond_elsewhere(build)


async def respond_elsewhere(build: Callable[[], Mapping[str, object]]) -> web.Response:
    """Build the body of a response and encode it, both in a thread."""
    body = await asyncio.to_thread(lambda: "".join(_encode(build(), _DEPTH_OF_TOKENS)).encode())
    return web.Response(body=body, content_type="application/json", charset="utf-8")


def _num_logprobs(outputs: Sequence[RequestOutput]) -> int:
    num_prompt = sum(len(output.prompt_logprobs or ()) for output in outputs)
    return num_prompt + sum(len(choice.logprobs or ()) for output in outputs for choice in output.outputs)


def _encode(value: object, depth: int) -> Iterator[str]:
    """Encode in small steps: one call of json.dumps holds the interpreter's lock to its end, from any thread."""
    if depth and isinstance(value, dict):
        yield "{"
        for position, (key, item) in enumerate(value.items()):
            yield f"{', ' if position else ''}{json.dumps(key)}: "
            yield from _encode(item, depth - 1)
        yield "}"
    elif depth and isinstance(value, list):
        yield "["
        for position, item in enumerate(value):
            yield ", " if position else ""
            yield from _encode(item, depth - 1)
        yield "]"
    else:
        yield json.dumps(value)
