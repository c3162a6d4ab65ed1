from __future__ import annotations

import pytest

from loramux.server.inference.vocabulary import Vocabulary
from tiny_tokenizers import byte_fallback, byte_level


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", ["na\u00efve", "\u4f60\u597d", "\U0001f9a9\u2603 x"])
def test_the_bytes_of_all_tokens_are_the_bytes_of_the_text(make, text: str) -> None:
    tokenizer = make()
    vocabulary = Vocabulary(tokenizer.token_text, tokenizer.token_bytes)

    shown = [vocabulary.show(token_id) for token_id in tokenizer.encode(text, add_special_tokens=False)]

    assert b"".join(token.raw for token in shown).decode().strip() == text
    assert sum(token.num_characters for token in shown) in (len(text), len(text) + 1)  # some put a space before it


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer.token_text, tokenizer.token_bytes)

    first, *_ = (vocabulary.show(token_id) for token_id in tokenizer.encode("\U0001f9a9", add_special_tokens=False))

    assert first.text.startswith(r"bytes:\xf0")
    assert first.num_characters == 1


def test_text_is_its_own_name() -> None:
    shown = Vocabulary(lambda _: " caf\u00e9").show(5)

    assert (shown.text, shown.raw, shown.num_characters) == (" caf\u00e9", " caf\u00e9".encode(), 5)


def test_a_token_that_is_the_replacement_character_itself_is_text() -> None:
    shown = Vocabulary(lambda _: "\ufffd", lambda _: b"\xef\xbf\xbd").show(5)

    assert (shown.text, shown.num_characters) == ("\ufffd", 1)


def test_a_part_whose_bytes_are_unknown_says_so() -> None:
    shown = Vocabulary(lambda _: "\ufffd").show(5)

    assert (shown.text, shown.raw) == ("\ufffd", None)
