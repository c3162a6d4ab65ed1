"""A token's bytes are told where its decoder has a rule for them, and only there."""

import pytest

import tiny_tokenizers
from loramux.text.token_bytes import token_bytes
from loramux.text.tokenizer import Tokenizer


def bytes_of(tokenizer: Tokenizer, token: str) -> bytes | None:
    return token_bytes(tokenizer.backend)(tokenizer.backend.token_to_id(token))


def test_the_bytes_of_a_byte_level_token_are_written_in_its_alphabet() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert bytes_of(tokenizer, "\u0120\u00f0\u0141\u0133") == b" \xf0\x9f\x91"
    assert bytes_of(tokenizer, "\u00a0\u00a0") is None  # an added token with letters of no alphabet


def test_only_the_byte_tokens_of_byte_fallback_have_a_rule() -> None:
    tokenizer = tiny_tokenizers.byte_fallback()
    assert bytes_of(tokenizer, "<0xE4>") == b"\xe4"
    assert bytes_of(tokenizer, "a") is None


@pytest.mark.parametrize("kind", ["unigram", "word_level"])
def test_other_decoders_have_no_rule(kind: str) -> None:
    assert token_bytes(tiny_tokenizers.KINDS[kind]().backend)(5) is None


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_id_outside_the_vocabulary_has_no_bytes(kind: str) -> None:
    assert token_bytes(tiny_tokenizers.KINDS[kind]().backend)(10**6) is None
