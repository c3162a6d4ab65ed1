from __future__ import annotations

import pytest

from loramux.errors import ContextLengthExceeded, RequestInvalid
from loramux.server.inference.prompts import Prompt, check_fits, parse_prompts


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("hi", ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_a_prompt_is_a_text_or_tokens_or_a_list_of_either(value: object, prompts: object) -> None:
    assert parse_prompts(value) == prompts


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_required_parameter"),
        ("", "missing_required_parameter"),
        ([], "missing_required_parameter"),
        (5, "invalid_value"),
        ({"text": "hi"}, "invalid_value"),
        (["hi", ""], "invalid_value"),
        (["hi", [1]], "invalid_value"),
        ([[]], "invalid_value"),
        ([1, -1], "invalid_value"),
        ([1, True], "invalid_value"),
        ([2**31], "invalid_value"),
        (["x"] * 65, "value_above_maximum"),
    ],
)
def test_anything_else_is_refused(value: object, code: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        parse_prompts(value)

    assert (caught.value.param, caught.value.code) == ("prompt", code)


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(90, 10), (99, None), (100, 0)])
def test_what_just_fits_is_taken(num_prompt: int, max_tokens: int | None) -> None:
    check_fits([Prompt([1] * num_prompt)], max_tokens=max_tokens, max_model_len=100, param="prompt")


@pytest.mark.parametrize(("num_prompt", "max_tokens", "total"), [(91, 10, 101), (100, None, 101), (101, 0, 101)])
def test_what_can_never_fit_is_refused_with_the_numbers(num_prompt: int, max_tokens: int | None, total: int) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"length is 100 tokens.*requested {total} tokens") as caught:
        check_fits([Prompt([1] * num_prompt)], max_tokens=max_tokens, max_model_len=100, param="messages")

    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
