"""What the official client makes of the server's answers: its error classes, its retries, its streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import openai
import pytest
from openai import _base_client
from yarl import URL

from fake_engine import FakeEngine
from loramux.errors import EngineDead, EngineOverloaded
from loramux.server.errors import ERROR_KINDS, Refused

CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
}
RETRIED = (408, 409, 429)
NUM_TRIES = 3
SECOND = 1.0
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the client before each retry, which take no time here."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(_base_client.anyio, "sleep", sleep)
    monkeypatch.setattr(_base_client.time, "sleep", slept.append)
    return slept


@pytest.fixture
async def sdk(client, slept: list[float]) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="any") as sdk:
        yield sdk


@pytest.fixture
def sync_sdk(client, slept: list[float]) -> Iterator[openai.OpenAI]:
    """To be called in a thread: the server has the event loop."""
    with openai.OpenAI(base_url=f"{client.url}/v1", api_key="any") as sdk:
        yield sdk


@pytest.mark.parametrize("code", sorted(ERROR_KINDS))
@pytest.mark.parametrize("stream", [False, True])
async def test_each_error_is_of_the_clients_own_class_and_retried_only_when_it_may_heal(
    client, engine, sdk, slept, code: str, stream: bool
) -> None:
    kind = ERROR_KINDS[code]
    engine.fail_after, engine.failure = 0, Refused(code, "not now", param="model")

    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.completions.create(model="llama", prompt="hi", stream=stream)

    error = caught.value
    default = openai.InternalServerError if kind.status >= 500 else openai.APIStatusError
    assert type(error) is CLASSES.get(kind.status, default)
    assert (error.status_code, error.code, error.param, error.type) == (kind.status, code, "model", kind.type)
    may_heal = kind.status >= 500 or kind.status in RETRIED
    assert client.statuses == [kind.status] * (NUM_TRIES if may_heal else 1)
    assert all(seconds <= 60 for seconds in slept)


async def test_a_retry_waits_as_long_as_the_server_says(client, engine, sdk, slept) -> None:
    engine.fail_after, engine.failure = 0, EngineDead("gone")

    with pytest.raises(openai.InternalServerError):
        await sdk.chat.completions.create(model="llama", **CHAT)

    assert slept == [5.0, 5.0]


@pytest.mark.parametrize("num_failures", [1, 2])
async def test_what_heals_in_time_is_an_answer_and_no_error(client, engine, sdk, slept, num_failures: int) -> None:
    _fail_first(engine, num_failures)

    answer = await sdk.completions.create(model="llama", prompt="hi")

    assert answer.choices[0].text == "base>hi"
    assert client.statuses == [503] * num_failures + [200]
    assert slept == [1.0] * num_failures


async def test_the_client_without_async_retries_and_gives_up_alike(client, engine, sync_sdk) -> None:
    _fail_first(engine, NUM_TRIES)

    with pytest.raises(openai.InternalServerError):
        await asyncio.to_thread(sync_sdk.completions.create, model="llama", prompt="hi")
    answer = await asyncio.to_thread(sync_sdk.completions.create, model="llama", prompt="hi")

    assert answer.choices[0].text == "base>hi"
    assert client.statuses == [503, 503, 503, 200]


@pytest.mark.parametrize(
    ("name", "error", "statuses"),
    [
        ("nobody", openai.NotFoundError, [404]),
        ("../up", openai.NotFoundError, [404]),
        ("down/sql", openai.InternalServerError, [503, 503, 503]),
    ],
)
async def test_an_unknown_model_is_asked_for_once_and_a_source_that_is_down_again(
    client, sdk, slept, name: str, error: type[openai.APIStatusError], statuses: list[int]
) -> None:
    with pytest.raises(error) as caught:
        await sdk.completions.create(model=name, prompt="hi")

    assert caught.value.param == "model"
    assert client.statuses == statuses
    assert slept == [8.0] * (len(statuses) - 1)


@pytest.mark.parametrize("kind", ["completions", "chat"])
async def test_a_stream_that_breaks_raises_what_broke_it_after_what_came(client, engine, sdk, kind: str) -> None:
    engine.fail_after, engine.failure = 3, EngineDead("gone")
    stream = aiter(await _streamed(sdk, kind))
    await anext(stream)

    with pytest.raises(openai.APIError) as caught:
        await _exhaust(stream)

    assert (caught.value.code, caught.value.type) == ("engine_unavailable", "server_error")
    assert caught.value.message == "The inference engine is not running."
    assert client.statuses == [200], "what has begun is not asked for again"


@pytest.mark.parametrize("kind", ["completions", "chat"])
@pytest.mark.parametrize(
    ("options", "has_last", "has_running"),
    [
        ({}, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": False, "continuous_usage_stats": False}, False, False),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": False}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
    ],
)
async def test_a_stream_counts_its_tokens_as_its_options_say(
    sdk, kind: str, options: dict[str, bool], has_last: bool, has_running: bool
) -> None:
    chunks = [chunk async for chunk in await _streamed(sdk, kind, **({"stream_options": options} if options else {}))]

    content = [chunk for chunk in chunks if chunk.choices]
    last = [chunk.usage.completion_tokens for chunk in chunks if not chunk.choices]
    running = [chunk.usage.completion_tokens for chunk in content if chunk.usage is not None]
    assert last == ([_num_answer_tokens(kind)] if has_last else [])
    assert len(running) == (len(content) if has_running else 0)
    assert running == sorted(running)
    assert not chunks[-1].choices if has_last else chunks[-1].choices


async def test_a_call_after_a_text_is_put_together_from_a_stream(sdk) -> None:
    """The fake engine says back what it is asked, one token per chunk."""
    content = 'I see. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    request = {"model": "llama", "messages": [{"role": "user", "content": content}], "tools": TOOLS}

    whole = (await sdk.chat.completions.create(**request)).choices[0]
    async with sdk.chat.completions.stream(**request) as stream:
        final = (await stream.get_final_completion()).choices[0]

    for choice in (whole, final):
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
        assert choice.message.content.rstrip() == "base>[weather]<user>I see."
        assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_takes_too_long_is_aborted(engine, sdk, stream: bool) -> None:
    engine.hold_after = 0

    with pytest.raises(openai.APITimeoutError):
        await sdk.with_options(timeout=0.2, max_retries=0).completions.create(model="llama", prompt="hi", stream=stream)

    await asyncio.wait_for(engine.left.wait(), SECOND)
    assert (len(engine.seen), engine.num_aborted, engine.num_running) == (1, 1, 0)


async def test_a_stream_that_is_closed_early_is_aborted(client, engine, sdk) -> None:
    engine.hold_after = 3

    async with await _streamed(sdk, "completions") as stream:
        await anext(aiter(stream))

    await asyncio.wait_for(engine.left.wait(), SECOND)
    assert engine.num_aborted == 1


async def test_a_call_that_is_cancelled_is_aborted(client, engine, sdk) -> None:
    engine.hold_after = 0
    call = asyncio.create_task(sdk.completions.create(model="llama", prompt="hi"))
    await asyncio.wait_for(engine.reached_gate.wait(), SECOND)

    call.cancel()

    await asyncio.wait_for(engine.left.wait(), SECOND)
    assert engine.num_aborted == 1


async def test_the_response_itself_carries_the_clients_request_id(sdk) -> None:
    raw = await sdk.completions.with_raw_response.create(
        model="llama", prompt="hi", extra_headers={"X-Request-Id": "mine-1"}
    )

    assert raw.status_code == 200
    assert raw.headers["server"] == "loramux"
    assert raw.request_id == "mine-1"
    assert raw.parse().id == "cmpl-mine-1"


async def test_an_error_carries_the_request_id(sdk) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.completions.create(model="nobody", prompt="hi", extra_headers={"X-Request-Id": "mine-2"})

    assert caught.value.request_id == "mine-2"


async def test_the_lines_of_a_stream_can_be_read_as_they_come(sdk) -> None:
    request = sdk.completions.with_streaming_response.create(model="llama", prompt="hi", stream=True)
    async with request as response:
        lines = [line async for line in response.iter_lines() if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("name", ["sql", "org/sql", "sql:v1", "org/sql@main", "a/b/c:d@e"])
async def test_a_model_is_retrieved_by_its_id_whatever_that_is_made_of(client, sdk, name: str) -> None:
    await client.server.registry.add(name, "/adapters/sql", origin="static")

    listed = [model.id async for model in sdk.models.list()]
    retrieved = await sdk.models.retrieve(name)
    raw = await client.get(f"/v1/models/{name}")
    encoded = URL(f"{client.url}/v1/models/{quote(name, safe='')}", encoded=True)
    async with client.session.get(encoded) as response:
        card = await response.json()

    assert listed == ["llama", "base", name]
    assert retrieved.id == raw.json["id"] == card["id"] == name


async def test_a_model_that_is_not_there_is_not_found(client, sdk) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve("org/nobody")

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert client.statuses == [404]


def _fail_first(engine: FakeEngine, num_failures: int) -> None:
    """Let the engine refuse so many requests as overloaded, then answer."""
    answer = engine.generate

    def generate(*arguments, **options):
        engine.fail_after = 0 if len(engine.seen) < num_failures else None
        return answer(*arguments, **options)

    engine.failure = EngineOverloaded("full")
    engine.generate = generate


async def _streamed(sdk: openai.AsyncOpenAI, kind: str, **options: object):
    if kind == "chat":
        return await sdk.chat.completions.create(model="llama", stream=True, **CHAT, **options)
    return await sdk.completions.create(model="llama", prompt="hi", stream=True, **options)


async def _exhaust(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


def _num_answer_tokens(kind: str) -> int:
    return len("base><user>hi" if kind == "chat" else "base>hi")
