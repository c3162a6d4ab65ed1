"""What a server may send, and what the benchmark makes of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from loramux.bench.http_target import HTTPTarget
from loramux.bench.server_address import ServerAddress
from loramux.bench.workload import BenchRequest
from loramux.errors import ConfigInvalid, EngineOverloaded, LoramuxError, RequestFailed

USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
REQUEST = BenchRequest(0, "sql", (5, 6), 3)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event(choices=[{"text": text}])


@asynccontextmanager
async def serving(answer: Handler, models: Handler | None = None) -> AsyncIterator[str]:
    async def first_model(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}, {"id": "sql"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/completions", answer), web.get("/v1/models", models or first_model)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def streaming(*parts: bytes) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"".join(parts), content_type="text/event-stream")

    return answer


def failing(status: int, body: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    return answer


async def ask(answer: Handler, request: BenchRequest = REQUEST) -> tuple[int | None, int, int]:
    """Return prompt tokens, output tokens and pieces."""
    pieces: list[None] = []
    async with serving(answer) as url, HTTPTarget.connect(ServerAddress(base_url=url)) as target:
        answered = await target.answer(request, lambda: pieces.append(None))
    return answered.num_prompt_tokens, answered.num_output_tokens, len(pieces)


async def failure(answer: Handler) -> LoramuxError:
    with pytest.raises(LoramuxError) as caught:
        await ask(answer)
    return caught.value


async def test_pieces_are_events_with_text_and_tokens_are_what_the_server_counted() -> None:
    done = b"data: [DONE]\n\n"
    stream = streaming(piece(""), piece("a"), b": ping\n\n", piece("bc"), event(choices=[], usage=USAGE), done)

    assert await ask(stream) == (2, 3, 2)


async def test_a_request_says_all_that_fixes_its_number_of_tokens() -> None:
    seen: list[tuple[dict[str, Any], str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((await request.json(), request.headers.get("Authorization")))
        return web.Response(body=piece("a") + event(usage=USAGE) + b"data: [DONE]\n\n")

    async with serving(answer) as url:
        address = ServerAddress(base_url=f"{url}/v1/", api_key="secret")
        async with HTTPTarget.connect(address) as target:
            for request in (REQUEST, BenchRequest(1, None, "text", 4)):
                await target.answer(request, lambda: None)

    bodies = [body for body, _ in seen]
    fixed = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    assert bodies[0] == {"model": "sql", "prompt": [5, 6], "max_tokens": 3, **fixed}
    assert bodies[1] == {"model": "tiny", "prompt": "text", "max_tokens": 4, **fixed}
    assert [key for _, key in seen] == ["Bearer secret"] * 2


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_without_room_refuses(status: int) -> None:
    error = await failure(failing(status, '{"error": {"message": "come back later"}}'))

    assert isinstance(error, EngineOverloaded)
    assert str(error) == f"{status} come back later"


@pytest.mark.parametrize(
    ("status", "body", "shown"), [(404, '{"error": "no"}', '{"error": "no"}'), (500, "x" * 999, "x")]
)
async def test_any_other_status_is_a_failure(status: int, body: str, shown: str) -> None:
    error = await failure(failing(status, body))

    assert isinstance(error, RequestFailed)
    assert str(error).startswith(f"{status} {shown}")
    assert len(str(error)) < 250


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([piece("a")], "the stream ended without [DONE]"),
        ([piece("a"), b"data: [DONE]\n\n"], "the server does not count tokens"),
        ([event(error={"message": "engine died"})], "engine died"),
        ([b"data: {\n\n"], "an event is no JSON"),
        ([b"data: []\n\n"], "an event is no object"),
        ([event(usage={"completion_tokens": None}), b"data: [DONE]\n\n"], "the server does not count tokens"),
        ([b"x" * 2**20], "LineTooLong"),
    ],
)
async def test_a_stream_that_is_none_is_a_failure(parts: list[bytes], message: str) -> None:
    error = await failure(streaming(*parts))

    assert isinstance(error, RequestFailed)
    assert message in str(error)


async def test_a_connection_that_breaks_is_a_failure() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(piece("a"))
        assert request.transport is not None
        request.transport.abort()
        return response

    assert isinstance(await failure(answer), RequestFailed)


async def test_a_server_that_answers_nobody_or_lists_nothing_is_a_wrong_setting() -> None:
    async with serving(streaming()) as url:
        pass
    with pytest.raises(ConfigInvalid, match="nobody answers"):
        async with HTTPTarget.connect(ServerAddress(base_url=url)):
            pass
    for models, message in ((failing(401, "key?"), "answers 401 key?"), (failing(200, "{}"), "lists no model")):
        async with serving(streaming(), models) as url:
            with pytest.raises(ConfigInvalid, match=message):
                async with HTTPTarget.connect(ServerAddress(base_url=url)):
                    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "--base-url must start with http"),
        ({"base_url": "http://h", "timeout_seconds": 0}, "--timeout must be above 0"),
    ],
)
def test_an_address_that_is_none_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        ServerAddress(**options)
