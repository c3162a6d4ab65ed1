from __future__ import annotations

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
    def refuse(*_: object, **__: object) -> list[int]:
        raise RequestInvalid("or give a chat_template", param="messages", code="no_chat_template")

    monkeypatch.setattr(ByteTokenizer, "apply_chat_template", refuse)

    reply = await client.chat()

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "no_chat_template", "messages")
    assert "chat_template" not in reply.error["message"]
    assert "/v1/completions" in reply.error["message"]


async def test_a_chat_that_cannot_fit_is_refused(client) -> None:
    reply = await client.chat("x" * 100)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")
