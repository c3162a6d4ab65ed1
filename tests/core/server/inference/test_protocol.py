from __future__ import annotations

import pytest
from pydantic import ValidationError

from loramux.errors import RequestInvalid
from loramux.sampling_params import SamplingParams
from loramux.server.inference.chat_protocol import ChatCompletionRequest, Message
from loramux.server.inference.protocol import CompletionRequest

HELLO = [{"role": "user", "content": "hello"}]


def completion(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "hi", **fields})


def chat(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": HELLO, **fields})


def test_every_sampling_field_reaches_the_engine() -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "min_tokens": 1,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "skip_special_tokens": False,
    }

    params = completion(**fields, logit_bias={"5": 1, "6": -2.5}).sampling_params(
        max_tokens=9, logprobs=2, prompt_logprobs=1
    )

    assert params == SamplingParams(**fields, max_tokens=9, logprobs=2, prompt_logprobs=1, logit_bias={5: 1.0, 6: -2.5})


def test_null_means_the_default_for_every_field() -> None:
    nulls = {name: None for name in CompletionRequest.model_fields if name != "prompt"}

    params = completion(**nulls).sampling_params(max_tokens=16, logprobs=None, prompt_logprobs=None)

    assert params == SamplingParams()


def test_fields_that_nobody_knows_are_accepted() -> None:
    completion(store=True, metadata={"a": 1}, no_such_field=[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 3),
        ("suffix", "end"),
        ("use_beam_search", True),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("guided_choice", ["yes", "no"]),
        ("guided_grammar", "root ::= x"),
        ("logits_processors", ["x"]),
        ("length_penalty", 0.5),
        ("early_stopping", True),
        ("priority", -1),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("reasoning_effort", "low"),
        ("include_reasoning", False),
        ("verbosity", "low"),
        ("detokenize", False),
        ("spaces_between_special_tokens", False),
        ("return_tokens_as_token_ids", True),
        ("logprob_token_ids", [5]),
        ("echo", True),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestInvalid, match=f"^'{name}' is not supported") as caught:
        chat(**{name: value})

    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 1),
        ("suffix", None),
        ("response_format", {"type": "text"}),
        ("tools", []),
        ("length_penalty", 1.0),
        ("early_stopping", False),
        ("priority", 0),
        *[(name, value) for name in ("tool_choice", "function_call") for value in ("none", "auto")],
        ("modalities", ["text"]),
        ("include_reasoning", True),
        ("verbosity", "medium"),
        ("detokenize", True),
        ("spaces_between_special_tokens", True),
        ("return_token_ids", False),
        ("return_tokens_as_token_ids", False),
        ("echo", False),
        ("add_special_tokens", False),
    ],
)
def test_the_same_fields_are_accepted_where_they_change_nothing(name: str, value: object) -> None:
    chat(**{name: value})


def test_a_field_may_be_served_for_one_kind_of_request_and_refused_for_the_other() -> None:
    assert completion(echo=True).echo
    assert chat(tools=[{"type": "function", "function": {"name": "f"}}]).tools
    with pytest.raises(RequestInvalid, match="'tools' is not supported"):
        completion(tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        chat(**fields)

    assert caught.value.param == param


def test_defaults_stand_for_what_the_client_leaves_open() -> None:
    defaults = {"temperature": 0.3, "top_k": 7, "max_tokens": 5, "stop_token_ids": [2]}

    def build(**fields: object) -> SamplingParams:
        body = completion(**fields)
        return body.sampling_params(max_tokens=body.max_tokens, logprobs=None, prompt_logprobs=None, defaults=defaults)

    assert build() == SamplingParams(temperature=0.3, top_k=7, max_tokens=5, stop_token_ids=[2])
    assert build(temperature=0.9, max_tokens=9, stop_token_ids=[3]) == SamplingParams(
        temperature=0.9, top_k=7, max_tokens=9, stop_token_ids=[2, 3]
    )
    assert build(ignore_eos=True).stop_token_ids == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "x" * 257},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logit_bias": {str(token): 1 for token in range(301)}},
        {"stop_token_ids": [-1]},
        {"temperature": float("nan")},
        {"echo": 1},
    ],
)
def test_types_and_caps_are_kept(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        completion(**fields)


def test_stream_options_need_a_stream() -> None:
    with pytest.raises(RequestInvalid) as caught:
        completion(stream_options={"include_usage": True})

    assert caught.value.param == "stream_options"


def test_prompt_logprobs_need_a_whole_answer() -> None:
    with pytest.raises(RequestInvalid) as caught:
        completion(prompt_logprobs=1, stream=True)

    assert caught.value.param == "prompt_logprobs"


@pytest.mark.parametrize(
    ("options", "at_the_end", "in_every_chunk"),
    [
        (None, False, False),
        ({}, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
    ],
)
def test_usage_in_a_stream_is_asked_for_by_its_options(
    options: dict[str, bool] | None, at_the_end: bool, in_every_chunk: bool
) -> None:
    body = completion(stream=True, stream_options=options)

    assert (body.wants_usage, body.wants_running_usage) == (at_the_end, in_every_chunk)


def test_logit_bias_must_be_keyed_by_token_ids() -> None:
    with pytest.raises(RequestInvalid) as caught:
        completion(logit_bias={"hello": 1}).sampling_params(max_tokens=1, logprobs=None, prompt_logprobs=None)

    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
    ],
)
def test_a_chat_asks_for_logprobs_with_two_fields(fields: dict[str, object], num_logprobs: int | None) -> None:
    assert chat(**fields).num_logprobs == num_logprobs


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(RequestInvalid, match="when using `top_logprobs`, `logprobs` must be set to true"):
        _ = chat(top_logprobs=2).num_logprobs


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({}, None), ({"max_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 7}, 7)],
)
def test_the_newer_name_for_the_length_of_an_answer_wins(fields: dict[str, object], tokens: int | None) -> None:
    assert chat(**fields).answer_tokens == tokens


def test_text_parts_and_other_fields_reach_the_tokenizer() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    message = Message.model_validate({"role": "user", "content": parts, "name": "Ada"})

    assert message.for_template() == {"role": "user", "content": parts, "name": "Ada"}


def test_a_message_may_have_no_content() -> None:
    assert Message.model_validate({"role": "assistant", "content": None}).for_template()["content"] is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": 5}],
        ["hello"],
    ],
)
def test_messages_that_are_none_are_refused(messages: list[object]) -> None:
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate({"messages": messages})
