from __future__ import annotations

import json

import pytest

from fake_engine import ByteTokenizer
from loramux.errors import RequestInvalid


async def test_an_answer_has_the_shape_that_clients_know(client) -> None:
    reply = await client.chat(model="found/sql")

    assert reply.json["id"].startswith("chatcmpl-")
    body = {key: value for key, value in reply.json.items() if key not in ("id", "created")}
    assert body == {
        "object": "chat.completion",
        "model": "found/sql",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "found/sql><user>hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": 9,
            "total_tokens": 27,
            "completion_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
        "prompt_logprobs": None,
    }


async def test_an_answer_may_fill_the_context_unless_said_otherwise(client, engine) -> None:
    await client.chat()
    await client.chat(max_tokens=3)
    await client.chat(max_tokens=3, max_completion_tokens=4)

    assert [params.max_tokens for _, params, _, _ in engine.seen] == [None, 3, 4]


async def test_logprobs_are_one_object_per_token(client) -> None:
    reply = await client.chat(logprobs=True, top_logprobs=1, max_tokens=1)

    assert reply.json["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "b",
                "logprob": -0.5,
                "bytes": [98],
                "top_logprobs": [{"token": "c", "logprob": -0.25, "bytes": [99]}],
            }
        ]
    }


async def test_a_stream_opens_with_the_role_and_ends_with_the_reason(client) -> None:
    events = (await client.chat(stream=True, n=2)).events

    assert events[-1] == "[DONE]"
    for index in range(2):
        parts = [part for chunk in events[:-1] for part in chunk["choices"] if part["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == "base><user>hi"
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["stop"]
        assert parts[-1]["finish_reason"] == "stop"
    assert {chunk["object"] for chunk in events[:-1]} == {"chat.completion.chunk"}


async def test_the_logprobs_of_a_stream_are_those_of_the_whole_answer(client) -> None:
    fields = {"logprobs": True, "top_logprobs": 1}
    whole = (await client.chat(**fields)).json["choices"][0]["logprobs"]["content"]
    events = (await client.chat(**fields, stream=True)).events[:-1]

    parts = [part["logprobs"] for chunk in events for part in chunk["choices"] if part["logprobs"]]
    assert [token for part in parts for token in part["content"]] == whole


async def test_usage_comes_last(client) -> None:
    events = (await client.chat(stream=True, stream_options={"include_usage": True})).events

    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] == 22


async def test_messages_that_the_template_refuses_are_the_clients_fault(client) -> None:
    messages = [{"role": "assistant", "content": "hi"}]
    reply = await client.post("/v1/chat/completions", {"messages": messages})

    assert (reply.status, reply.error["param"]) == (400, "messages")


async def test_without_a_chat_template_the_advice_is_one_that_a_client_can_follow(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RequestInvalid("or give a chat_template", param="messages", code="no_chat_template")

    monkeypatch.setattr(ByteTokenizer, "render_chat", refuse)

    reply = await client.chat()

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "no_chat_template", "messages")
    assert "chat_template" not in reply.error["message"]
    assert "/v1/completions" in reply.error["message"]


async def test_a_chat_that_cannot_fit_is_refused(client) -> None:
    reply = await client.chat("x" * 100)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'  # the fake engine says it back


async def test_a_tool_call_in_the_answer_is_one_in_the_message(client) -> None:
    choice = (await client.chat(CALL, tools=TOOLS)).json["choices"][0]

    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "base>[weather]<user>", "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert (call["type"], call["id"][:5]) == ("function", "call_")


async def test_a_stream_brings_the_same_call_in_pieces(client) -> None:
    events = (await client.chat(CALL, tools=TOOLS, stream=True)).events

    parts = [part for chunk in events[:-1] for part in chunk["choices"]]
    pieces = [piece for part in parts for piece in part["delta"].get("tool_calls", [])]
    assert pieces[0]["function"] == {"name": "weather", "arguments": ""}
    assert {piece["index"] for piece in pieces} == {0}
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"city": "Paris"}'
    assert "".join(part["delta"].get("content", "") for part in parts) == "base>[weather]<user>"
    assert parts[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
async def test_without_tools_the_same_text_is_just_text(client, fields: dict[str, object]) -> None:
    choice = (await client.chat(CALL, **fields)).json["choices"][0]

    assert choice["message"]["content"] == f"base><user>{CALL}"
    assert choice["finish_reason"] == "stop"


async def test_special_tokens_stay_in_the_text_where_they_may_mark_a_call(client, engine) -> None:
    await client.chat()
    await client.chat(tools=TOOLS)

    assert [params.skip_special_tokens for _, params, _, _ in engine.seen] == [True, False]


@pytest.mark.parametrize(
    ("choice", "held_to"),
    [("required", "array"), ({"type": "function", "function": {"name": "weather"}}, "object")],
)
async def test_an_answer_that_must_call_is_held_to_the_schema(client, engine, choice: object, held_to: str) -> None:
    await client.chat(tools=TOOLS, tool_choice=choice)

    ((_, params, _, _),) = engine.seen
    assert json.loads(params.structured_outputs.json)["type"] == held_to


async def test_an_answer_cannot_be_a_call_and_have_a_format(client) -> None:
    reply = await client.chat(tools=TOOLS, tool_choice="required", response_format={"type": "json_object"})

    assert (reply.status, reply.error["param"]) == (400, "tool_choice")


async def test_tools_that_the_template_does_not_show_are_refused(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "render_chat", lambda *_, **__: "same")

    reply = await client.chat(tools=TOOLS)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_parameter", "tools")


async def test_the_tokens_are_told_where_they_are_asked_for(client) -> None:
    whole = (await client.chat(return_token_ids=True)).json
    events = (await client.chat(return_token_ids=True, stream=True)).events[:-1]

    assert whole["prompt_token_ids"] == [1, *b"<user>hi"]
    assert whole["choices"][0]["token_ids"] == list(b"base><user>hi")
    assert [chunk["prompt_token_ids"] for chunk in events if "prompt_token_ids" in chunk] == [[1, *b"<user>hi"]]
    parts = [part for chunk in events for part in chunk["choices"]]
    assert [token for part in parts for token in part.get("token_ids", [])] == list(b"base><user>hi")


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {"add_generation_prompt": True}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}),
        ({"documents": [{"text": "x"}]}, {"documents": [{"text": "x"}], "add_generation_prompt": True}),
        (
            {"chat_template": "{{ x }}", "chat_template_kwargs": {"enable_thinking": False}},
            {"chat_template": "{{ x }}", "enable_thinking": False, "add_generation_prompt": True},
        ),
    ],
)
async def test_what_the_template_is_told(start, fields: dict[str, object], arguments: dict[str, object]) -> None:
    client = await start(trust_request_chat_template=True)

    assert (await client.chat(**fields)).status == 200
    assert client.server.tokenizer.template_arguments == arguments


@pytest.mark.parametrize("field", [{"chat_template": "{{ x }}"}, {"chat_template_kwargs": {"a": 1}}])
async def test_a_clients_own_template_needs_the_operators_leave(client, field: dict[str, object]) -> None:
    reply = await client.chat(**field)

    assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
    assert "--trust-request-chat-template" in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"truncate_prompt_tokens": 4}, b"r>hi"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, [1, *b"<us"]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 97}, b">hi"),
        ({"truncate_prompt_tokens": 99}, [1, *b"<user>hi"]),
    ],
)
async def test_a_prompt_is_cut_to_the_tokens_asked_for(client, engine, fields: dict[str, object], prompt) -> None:
    assert (await client.chat(**fields)).status == 200
    assert engine.seen[0][0] == list(prompt)
