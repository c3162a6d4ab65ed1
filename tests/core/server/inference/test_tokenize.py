from __future__ import annotations

import pytest


async def test_a_text_is_the_tokens_that_it_would_be_answered_from(client, engine) -> None:
    reply = await client.post("/tokenize", {"prompt": "hi", "return_token_strs": True})

    assert reply.json == {
        "count": 3,
        "max_model_len": 100,
        "tokens": [1, *b"hi"],
        "token_strs": ["", "h", "i"],
    }
    await client.complete()
    assert engine.seen[0][0] == reply.json["tokens"]


@pytest.mark.parametrize(("adds", "tokens"), [(False, [*b"hi"]), (True, [1, *b"hi"]), (None, [1, *b"hi"])])
async def test_special_tokens_may_be_left_out(client, adds: bool | None, tokens: list[int]) -> None:
    assert (await client.post("/tokenize", {"prompt": "hi", "add_special_tokens": adds})).json["tokens"] == tokens


async def test_messages_go_through_the_chat_template(client) -> None:
    reply = await client.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})

    assert reply.json["tokens"] == [1, *b"<user>hi"]
    assert reply.json["token_strs"] is None


async def test_text_that_no_request_could_have_is_counted_all_the_same(client) -> None:
    assert (await client.post("/tokenize", {"prompt": "x" * 500})).json["count"] == 501


async def test_tokens_become_the_text_that_they_are(client) -> None:
    assert (await client.post("/detokenize", {"tokens": [1, *b"hi"]})).json == {"prompt": "hi"}


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_a_model_that_nobody_knows_is_not_found(client, path: str) -> None:
    reply = await client.post(path, {"model": "nope", "prompt": "hi", "tokens": [1]})

    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "x" * 1601}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 1601}]}, "messages"),
        ("/detokenize", {"tokens": [5] * 1601}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/tokenize", {"messages": None}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, 256]}, "tokens.1"),
        ("/detokenize", {"tokens": "hi"}, "tokens"),
    ],
)
async def test_what_is_wrong_is_named(client, path: str, body: dict[str, object], param: str) -> None:
    reply = await client.post(path, body)

    assert (reply.status, reply.error["param"]) == (400, param)
