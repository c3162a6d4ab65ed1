"""LiteLLM, unmodified."""

from __future__ import annotations

from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel

from served import Served

CHAT = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 6}
TEXT = {"prompt": "SELECT name", "temperature": 0, "max_tokens": 6}


class Weather(BaseModel):
    """Small enough for any model to write."""

    city: Literal["Paris", "Tokyo"]
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture
def server(served: Served) -> dict[str, str]:
    return {"api_base": f"{served.url}/v1", "api_key": "test-key"}


def test_the_snippet_runs(snippet: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet["LiteLLM"], "docs/clients.md", "exec"), {})

    assert capsys.readouterr().out


async def test_every_way_of_asking_gives_the_same_answer(server: dict[str, str], names: tuple[str, ...]) -> None:
    models = [f"openai/{name}" for name in names]

    whole = [litellm.completion(model=model, **CHAT, **server).choices[0].message.content for model in models]
    streamed = [_text(litellm.completion(model=model, stream=True, **CHAT, **server)) for model in models]
    awaited = [
        (await litellm.acompletion(model=model, **CHAT, **server)).choices[0].message.content for model in models
    ]

    assert whole == streamed == awaited
    assert len(set(whole)) == len(names), "the adapters were meant to change the answers"


async def test_a_stream_that_is_awaited_ends_with_its_usage(server: dict[str, str]) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await litellm.acompletion(model="openai/sql-lora", **options, **CHAT, **server)

    chunks = [chunk async for chunk in stream]

    assert chunks[-1].usage.completion_tokens == 6
    assert {chunk.model for chunk in chunks} == {"sql-lora"}


def test_a_prompt_is_continued_whole_and_streamed(server: dict[str, str]) -> None:
    model = "text-completion-openai/org/json-lora"

    whole = litellm.text_completion(model=model, logprobs=1, **TEXT, **server)
    chunks = litellm.text_completion(model=model, stream=True, **TEXT, **server)

    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.token_logprobs) == whole.usage.completion_tokens == 6


def test_an_answer_fits_the_class_that_was_asked_for(server: dict[str, str], shaped: dict[str, Any]) -> None:
    request = {**CHAT, **shaped, "response_format": Weather}

    answer = litellm.completion(model="openai/sql-lora", **request, **server)

    assert Weather.model_validate_json(answer.choices[0].message.content)


def test_a_tool_is_called_whole_and_streamed(server: dict[str, str], shaped: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "Weather", "parameters": Weather.model_json_schema()}}
    request = {**CHAT, **shaped, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}

    whole = litellm.completion(model="openai/org/json-lora", **request, **server)
    chunks = list(litellm.completion(model="openai/org/json-lora", stream=True, **request, **server))
    streamed = litellm.stream_chunk_builder(chunks)

    for choice in (whole.choices[0], streamed.choices[0]):
        (call,) = choice.message.tool_calls
        assert call.function.name == "Weather"
        assert Weather.model_validate_json(call.function.arguments)
        assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "openai/nobody"}, litellm.NotFoundError),
        ({"max_tokens": 100_000}, litellm.ContextWindowExceededError),
        ({"temperature": 7}, litellm.BadRequestError),
        ({"api_key": "wrong"}, litellm.AuthenticationError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_of_the_class_that_fits(
    server: dict[str, str], options: dict[str, object], error: type[Exception], stream: bool
) -> None:
    with pytest.raises(error):
        litellm.completion(**{"model": "openai/sql-lora", "stream": stream, **CHAT, **server, **options})


def _text(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
