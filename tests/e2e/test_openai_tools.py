"""The official client's tools and parsed answers, with models that would say anything: the server holds the shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from served import Served, serving
from tiny_models import TOOLS_TEMPLATE, without_white_space

MESSAGES = [{"role": "user", "content": "What is the weather in Tokyo?"}]


class Weather(BaseModel):
    """Small enough for any model to write."""

    city: Literal["Paris", "Tokyo"]
    unit: Literal["celsius", "fahrenheit"]


class Send(BaseModel):
    """Another tool."""

    urgent: bool


TOOLS = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Send)]
NAMED = {"type": "function", "function": {"name": "Weather"}}


@pytest.fixture(scope="module")
def served(
    tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    model = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("with-tools") / tiny_llama.name)
    (model / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    with serving(
        str(model),
        *("--served-model-name", "tiny", tiny_llama.name),
        *("--enable-lora", "--lora-modules", f"one={make_adapter('tools/one', rank=8, seed=3)}"),
        *("--kv-cache-memory-bytes", "32MiB"),
        log=tmp_path_factory.mktemp("tools") / "log",
    ) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
        yield client


@pytest.fixture(params=["tiny", "one"])
def request_(request: pytest.FixtureRequest, tiny_llama: Path) -> dict[str, object]:
    shape = {"max_tokens": 200, "logit_bias": without_white_space(tiny_llama)}
    return {"model": request.param, "messages": MESSAGES, "temperature": 0, **shape}


def test_an_answer_is_parsed_into_the_callers_own_class(client: openai.OpenAI, request_: dict[str, object]) -> None:
    answer = client.chat.completions.parse(response_format=Weather, **request_)

    assert isinstance(answer.choices[0].message.parsed, Weather)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_is_parsed_when_it_has_ended(client: openai.OpenAI, request_: dict[str, object]) -> None:
    with client.chat.completions.stream(response_format=Weather, **request_) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    whole = client.chat.completions.parse(response_format=Weather, **request_)
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert {"content.delta", "content.done"} <= kinds


def test_an_answer_that_is_cut_says_so_instead_of_being_parsed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="one", messages=MESSAGES, response_format=Weather, max_tokens=3)


def test_any_json_object_can_be_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="one", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=200, temperature=0
    )

    choice = answer.choices[0]
    assert choice.message.content.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_has_arguments_of_the_tools_own_class(
    client: openai.OpenAI, request_: dict[str, object], choice: object
) -> None:
    answer = client.chat.completions.parse(
        tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **request_
    ).choices[0]

    (call,) = answer.message.tool_calls
    assert type(call.function.parsed_arguments) is {"Weather": Weather, "Send": Send}[call.function.name]
    assert call.id
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert not answer.message.content


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_streamed_call_is_the_one_that_comes_whole(
    client: openai.OpenAI, request_: dict[str, object], choice: object
) -> None:
    options = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, **request_}

    with client.chat.completions.stream(**options) as stream:
        deltas = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]

    whole = client.chat.completions.parse(**options).choices[0]
    (call,), (expected,) = final.message.tool_calls, whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == (expected.function.name, expected.function.arguments)
    assert call.function.parsed_arguments == expected.function.parsed_arguments
    assert "".join(delta.arguments_delta for delta in deltas) == call.function.arguments
    assert final.finish_reason == whole.finish_reason


def test_what_a_tool_answered_goes_back_to_the_model(client: openai.OpenAI, request_: dict[str, object]) -> None:
    first = client.chat.completions.parse(tools=TOOLS, tool_choice=NAMED, **request_).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "18 degrees"}

    second = client.chat.completions.create(**{**request_, "messages": [*MESSAGES, first, result], "max_tokens": 4})

    assert second.usage.completion_tokens <= 4
