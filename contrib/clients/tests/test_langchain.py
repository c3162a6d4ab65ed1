"""LangChain's ChatOpenAI and OpenAI, unmodified."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from served import Served

on_one_loop = pytest.mark.asyncio(loop_scope="module")  # LangChain keeps its connections from one call to the next


class Weather(BaseModel):
    """Small enough for any model to write."""

    city: Literal["Paris", "Tokyo"]
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture
def make_chat(served: Served) -> Callable[..., ChatOpenAI]:
    return partial(ChatOpenAI, base_url=f"{served.url}/v1", temperature=0, max_tokens=6, stream_usage=True)


def test_the_snippet_runs(snippet: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet["LangChain"], "docs/clients.md", "exec"), {})

    assert capsys.readouterr().out


def test_every_way_of_asking_gives_the_same_answer(
    make_chat: Callable[..., ChatOpenAI], names: tuple[str, ...]
) -> None:
    chats = {name: make_chat(model=name) for name in names}

    invoked = [chat.invoke("hi").content for chat in chats.values()]
    streamed = ["".join(chunk.content for chunk in chat.stream("hi")) for chat in chats.values()]
    batched = [chat.batch(["ho", "hi"])[1].content for chat in chats.values()]

    assert invoked == streamed == batched
    assert len(set(invoked)) == len(names), "the adapters were meant to change the answers"


@on_one_loop
async def test_the_async_ways_give_it_too(make_chat: Callable[..., ChatOpenAI]) -> None:
    chat = make_chat(model="org/json-lora")

    invoked = (await chat.ainvoke("hi")).content
    streamed = "".join([chunk.content async for chunk in chat.astream("hi")])
    batched = [message.content for message in await chat.abatch(["hi", "hi"])]

    assert invoked == chat.invoke("hi").content
    assert [streamed, *batched] == [invoked] * 3


def test_tokens_are_counted_alike_whole_and_streamed(make_chat: Callable[..., ChatOpenAI]) -> None:
    chat = make_chat(model="sql-lora")

    whole = chat.invoke("hi")
    *_, last = (chunk for chunk in chat.stream("hi") if chunk.usage_metadata)

    assert whole.usage_metadata["output_tokens"] == 6
    assert last.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]
    assert whole.response_metadata["model_name"] == "sql-lora"
    assert whole.response_metadata["finish_reason"] == "length"


def test_log_probabilities_come_with_each_token(make_chat: Callable[..., ChatOpenAI]) -> None:
    answer = make_chat(model="sql-lora", logprobs=True, top_logprobs=2).invoke("hi")

    content = answer.response_metadata["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [2] * 6


def test_a_prompt_is_continued(served: Served) -> None:
    llm = OpenAI(model="sql-lora", base_url=f"{served.url}/v1", temperature=0, max_tokens=6)

    whole, *_ = llm.batch(["SELECT name", "x"])

    assert whole == "".join(llm.stream("SELECT name"))


def test_a_bound_tool_is_called(make_chat: Callable[..., ChatOpenAI], shaped: dict[str, Any]) -> None:
    chat = make_chat(model="org/json-lora", **shaped).bind_tools([Weather], tool_choice="Weather")

    (call,) = chat.invoke("hi").tool_calls
    streamed = sum(list(chat.stream("hi"))[1:], start=next(chat.stream("hi")))

    assert call["name"] == "Weather"
    assert Weather(**call["args"])
    assert call["id"]
    assert [(each["name"], each["args"]) for each in streamed.tool_calls] == [(call["name"], call["args"])]


def test_what_a_tool_answered_goes_back_to_the_model(
    make_chat: Callable[..., ChatOpenAI], shaped: dict[str, Any]
) -> None:
    chat = make_chat(model="sql-lora", **shaped)
    asked = chat.bind_tools([Weather], tool_choice="any").invoke("hi")

    answer = make_chat(model="sql-lora").invoke(
        [HumanMessage("hi"), asked, ToolMessage("18 degrees", tool_call_id=asked.tool_calls[0]["id"])]
    )

    assert answer.usage_metadata["output_tokens"] <= 6


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_structured_output_is_of_the_callers_class(
    make_chat: Callable[..., ChatOpenAI], shaped: dict[str, Any], method: str
) -> None:
    chat = make_chat(model="sql-lora", **shaped).with_structured_output(Weather, method=method)

    assert isinstance(chat.invoke("hi"), Weather)


@on_one_loop
async def test_a_structured_output_streams(make_chat: Callable[..., ChatOpenAI], shaped: dict[str, Any]) -> None:
    chat = make_chat(model="sql-lora", **shaped).with_structured_output(Weather, method="json_schema")

    *_, last = [part async for part in chat.astream("hi")]

    assert last == await chat.ainvoke("hi")


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"model": "sql-lora", "max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"model": "sql-lora", "api_key": "wrong"}, openai.AuthenticationError, "invalid_api_key"),
    ],
)
def test_errors_are_those_of_the_official_client(
    make_chat: Callable[..., ChatOpenAI], options: dict[str, object], error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as caught:
        make_chat(**options).invoke("hi")

    assert caught.value.code == code
