"""A bad word is banned as it stands alone and after a space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerFast

from loramux.errors import RequestInvalid
from loramux.text.bad_words import encode_bad_words
from loramux.text.tokenizer import Tokenizer
from tiny_tokenizers import byte_fallback, byte_level


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_word_is_encoded_with_a_space_and_without(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    alone, spaced = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in ("capital", " capital"))
    assert alone != spaced
    assert encode_bad_words(["capital"], tokenizer) == (alone, spaced)
    assert encode_bad_words([" capital"], tokenizer) == (alone, spaced)


def test_spaces_alone_are_a_word_too() -> None:
    tokenizer = byte_level()
    assert encode_bad_words(["\n"], tokenizer) == (tuple(tokenizer.encode("\n")),)


def test_what_is_said_twice_is_banned_once() -> None:
    assert len(encode_bad_words(["a", " a", "a"], byte_level())) == 2


def test_no_words_ban_nothing() -> None:
    assert encode_bad_words((), byte_level()) == ()


def test_a_word_of_which_nothing_is_left_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    backend.normalizer = normalizers.Replace("x", "")
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(RequestInvalid, match=r"^bad_words must be words that have tokens, got 'xx'$") as refused:
        encode_bad_words(["a", "xx"], tokenizer)
    assert refused.value.param == "bad_words"
