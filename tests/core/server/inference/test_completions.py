from __future__ import annotations

import pytest


async def test_an_answer_has_the_shape_that_clients_know(client) -> None:
    reply = await client.complete(model="base", max_tokens=20)

    assert reply.status == 200
    assert reply.json.pop("id").startswith("cmpl-")
    body = {key: value for key, value in reply.json.items() if key not in ("id", "created")}
    assert body == {
        "object": "text_completion",
        "model": "base",
        "choices": [
            {
                "index": 0,
                "text": "base>hi",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "prompt_logprobs": None,
            }
        ],
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": 3,
            "total_tokens": 10,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


async def test_without_a_model_the_base_answers(client) -> None:
    reply = await client.complete()

    assert (reply.json["model"], reply.json["choices"][0]["text"]) == ("llama", "base>hi")


async def test_a_resolved_adapter_answers_under_its_name(client, engine) -> None:
    reply = await client.complete(model="found/sql")

    assert (reply.json["model"], reply.json["choices"][0]["text"]) == ("found/sql", "found/sql>hi")
    assert engine.seen[0][3] == client.server.registry.adapters()[0].lora_request


async def test_an_answer_is_sixteen_tokens_long_unless_said_otherwise(client, engine) -> None:
    await client.complete()
    await client.complete(max_tokens=None)
    await client.complete(max_tokens=5)

    assert [params.max_tokens for _, params, _, _ in engine.seen] == [16, 16, 5]


async def test_choices_are_ordered_by_prompt_and_then_by_sample(client) -> None:
    reply = await client.complete(prompt=["a", "b"], n=2)

    assert [(choice["index"], choice["text"]) for choice in reply.json["choices"]] == [
        (0, "base>a"),
        (1, "base>a"),
        (2, "base>b"),
        (3, "base>b"),
    ]
    assert reply.json["usage"]["prompt_tokens"] == 4
    assert reply.json["usage"]["completion_tokens"] == 24


async def test_prompts_given_as_tokens_go_to_the_engine_as_they_are(client, engine) -> None:
    await client.complete(prompt=[[9, 104], [9, 105]])

    assert [prompt for prompt, _, _, _ in engine.seen] == [[9, 104], [9, 105]]


async def test_special_tokens_are_added_unless_told_not_to(client, engine) -> None:
    await client.complete()
    await client.complete(add_special_tokens=False)

    assert [prompt for prompt, _, _, _ in engine.seen] == [[1, 104, 105], [104, 105]]


async def test_an_echo_starts_with_the_prompt(client) -> None:
    assert (await client.complete(echo=True)).json["choices"][0]["text"] == "hibase>hi"
    assert (await client.complete(echo=True, prompt=[1, 104, 105])).json["choices"][0]["text"] == "hibase>hi"


async def test_an_echo_alone_scores_the_prompt(client) -> None:
    reply = await client.complete(echo=True, max_tokens=0, logprobs=1)

    choice = reply.json["choices"][0]
    assert choice["text"] == "hi"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "text_offset": [0, 0, 1],
        "token_logprobs": [None, -0.5, -0.5],
        "tokens": ["", "h", "i"],
        "top_logprobs": [None, {"h": -0.5, "i": -0.25}, {"i": -0.5, "j": -0.25}],
    }
    assert reply.json["usage"]["completion_tokens"] == 0


async def test_no_tokens_without_an_echo_is_refused(client) -> None:
    assert (await client.complete(max_tokens=0)).error["param"] == "max_tokens"


async def test_logprobs_of_zero_still_give_the_chosen_token(client) -> None:
    reply = await client.complete(max_tokens=1, logprobs=0)

    assert reply.json["choices"][0]["logprobs"] == {
        "text_offset": [0],
        "token_logprobs": [-0.5],
        "tokens": ["b"],
        "top_logprobs": [{"b": -0.5}],
    }


async def test_prompt_logprobs_are_given_by_token_id(client) -> None:
    reply = await client.complete(prompt_logprobs=0, max_tokens=1)

    assert reply.json["choices"][0]["prompt_logprobs"] == [
        None,
        {"104": {"logprob": -0.5, "rank": 2, "decoded_token": "h"}},
        {"105": {"logprob": -0.5, "rank": 2, "decoded_token": "i"}},
    ]


async def test_the_answers_to_one_prompt_share_its_logprobs(client) -> None:
    reply = await client.complete(prompt=["a", "b"], n=2, prompt_logprobs=0, max_tokens=1)

    given = [choice["prompt_logprobs"] for choice in reply.json["choices"]]
    assert [part and list(part[1]) for part in given] == [["97"], None, ["98"], None]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"prompt": ["a", "b"]}, {"echo": True}, {"logprobs": 1}])
async def test_a_stream_says_in_pieces_what_the_whole_answer_says(client, fields: dict[str, object]) -> None:
    whole = (await client.complete(**fields)).json["choices"]
    chunks = (await client.complete(**fields, stream=True)).events

    assert chunks[-1] == "[DONE]"
    for choice in whole:
        parts = [part for chunk in chunks[:-1] for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"]:
            for key, values in choice["logprobs"].items():
                assert [value for part in parts for value in part["logprobs"][key]] == values


async def test_a_stream_has_one_id_and_the_name_of_its_model(client) -> None:
    chunks = (await client.complete(model="found/sql", stream=True)).events[:-1]

    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("text_completion", "found/sql")}


async def test_a_stream_of_an_echo_alone_is_the_prompt(client) -> None:
    events = (await client.complete(stream=True, echo=True, max_tokens=0)).events

    assert [(choice["text"], choice["finish_reason"]) for choice in events[0]["choices"]] == [("hi", "length")]
    assert events[1:] == ["[DONE]"]


async def test_usage_comes_last_and_only_when_it_was_asked_for(client) -> None:
    without = (await client.complete(stream=True)).events
    options = {"include_usage": True}
    with_usage = (await client.complete(stream=True, stream_options=options, prompt=["a", "b"])).events

    assert all("usage" not in chunk for chunk in without[:-1])
    assert with_usage[-2]["choices"] == []
    assert with_usage[-2]["usage"]["prompt_tokens"] == 4
    assert with_usage[-2]["usage"]["completion_tokens"] == 12
    assert all("usage" not in chunk for chunk in with_usage[:-2])


async def test_usage_can_be_in_every_chunk(client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = (await client.complete(stream=True, stream_options=options)).events[:-1]

    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 7


async def test_what_cannot_fit_is_refused_before_the_engine_sees_it(client, engine) -> None:
    reply = await client.complete(max_tokens=98)

    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "prompt")
    assert engine.seen == []


async def test_too_many_answers_in_one_request_are_refused(client) -> None:
    reply = await client.complete(prompt=["x"] * 64, n=3)

    assert (reply.status, reply.error["code"]) == (400, "value_above_maximum")


async def test_one_failed_prompt_fails_the_request_and_aborts_the_others(client, engine) -> None:
    engine.fail_after = 3
    engine.failure = RuntimeError("boom")

    reply = await client.complete(prompt=["a", "b", "c"])

    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert "boom" not in reply.text
    assert engine.num_running == 0
