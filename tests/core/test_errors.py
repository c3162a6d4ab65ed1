"""A prompt that is too long is refused in the same words wherever it is noticed."""

from __future__ import annotations

from loramux.errors import ContextLengthExceeded


def test_too_many_tokens_are_named_by_their_numbers() -> None:
    error = ContextLengthExceeded.of_tokens(12, num_prompt=10, num_answer=5, param="messages")

    assert str(error) == (
        "This model's maximum context length is 12 tokens. However, you requested 15 tokens (10 in the prompt, 5 in "
        "the completion). Please reduce the length."
    )
    assert (error.param, error.code) == ("messages", "context_length_exceeded")


def test_a_text_too_long_to_encode_is_named_by_its_bytes() -> None:
    error = ContextLengthExceeded.of_bytes(12, nbytes=5000)

    assert str(error) == (
        "This model's maximum context length is 12 tokens. However, your prompt of 5000 bytes has more than 12 tokens. "
        "Please reduce the length."
    )
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
