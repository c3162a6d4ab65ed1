from __future__ import annotations

import pytest

from loramux.outputs import CompletionOutput, Logprob, RequestOutput
from loramux.server.inference.pieces import (
    AnswerCursor,
    Piece,
    chat_logprobs,
    completion_logprobs,
    num_characters,
    prompt_logprobs,
)
from loramux.server.inference.vocabulary import Vocabulary

PARTS = {5: b"\xe2", 6: b"\x80", 7: b"\xf0"}
UNREADABLE = Vocabulary(lambda _: "\ufffd")
BYTE_LEVEL = Vocabulary(lambda _: "\ufffd", PARTS.get)


def test_a_cursor_gives_every_part_once() -> None:
    cursor = AnswerCursor()

    first = cursor.take(CompletionOutput(0, "he", [1, 2]))
    second = cursor.take(CompletionOutput(0, "he", [1, 2, 3]))  # text that is held back
    third = cursor.take(CompletionOutput(0, "hello", [1, 2, 3, 4]))

    assert [(piece.text, list(piece.token_ids)) for piece in (first, second, third)] == [
        ("he", [1, 2]),
        ("", [3]),
        ("llo", [4]),
    ]


@pytest.mark.parametrize("value", ["-inf", "nan"])
def test_what_json_cannot_say_becomes_a_number_that_it_can(value: str) -> None:
    entry = {5: Logprob(float(value), 9, "x"), 6: Logprob(-0.1, 1, "y")}
    piece = Piece("x", [5], [entry])

    assert completion_logprobs(piece, num_top=1, offset=0, vocabulary=Vocabulary(str))["token_logprobs"] == [-9999.0]
    assert chat_logprobs(piece, num_top=1, vocabulary=Vocabulary(str)) == {
        "content": [
            {
                "token": "x",
                "logprob": -9999.0,
                "bytes": [120],
                "top_logprobs": [{"token": "y", "logprob": -0.1, "bytes": [121]}],
            }
        ]
    }


def test_the_most_likely_tokens_come_by_rank_after_the_chosen_one() -> None:
    entry = {5: Logprob(-3.0, 3, "c"), 7: Logprob(-2.0, 2, "b"), 6: Logprob(-1.0, 1, "a")}

    logprobs = completion_logprobs(Piece("c", [5], [entry]), num_top=2, offset=4, vocabulary=Vocabulary(str))

    assert list(logprobs["top_logprobs"][0]) == ["c", "a", "b"]
    assert logprobs["text_offset"] == [4]


def test_a_token_without_a_text_of_its_own_gets_one() -> None:
    entry = {5: Logprob(-1.0, 1, None)}

    assert completion_logprobs(Piece("?", [5], [entry]), num_top=0, offset=0, vocabulary=Vocabulary(str))["tokens"] == [
        "5"
    ]


def test_the_chosen_token_keeps_its_value_where_others_have_the_same_text() -> None:
    entry = {5: Logprob(-3.0, 3), 6: Logprob(-1.0, 1), 7: Logprob(-2.0, 2)}

    logprobs = completion_logprobs(Piece("", [5], [entry]), num_top=2, offset=0, vocabulary=UNREADABLE)

    assert logprobs["top_logprobs"] == [{"\ufffd": -3.0}]


def test_parts_of_characters_are_told_apart_by_their_bytes() -> None:
    entry = {5: Logprob(-3.0, 3), 6: Logprob(-1.0, 1), 7: Logprob(-2.0, 2)}

    logprobs = completion_logprobs(Piece("", [5], [entry]), num_top=2, offset=0, vocabulary=BYTE_LEVEL)

    assert logprobs["tokens"] == [r"bytes:\xe2"]
    assert logprobs["top_logprobs"] == [{r"bytes:\xe2": -3.0, r"bytes:\x80": -1.0, r"bytes:\xf0": -2.0}]


def test_a_character_of_several_tokens_is_one_character_of_the_text() -> None:
    piece = Piece("\u2000", [5, 6], [{5: Logprob(-1.0, 1)}, {6: Logprob(-1.0, 1)}])

    assert completion_logprobs(piece, num_top=0, offset=4, vocabulary=BYTE_LEVEL)["text_offset"] == [4, 5]
    assert num_characters(piece, BYTE_LEVEL) == 1


def test_a_chat_gets_the_bytes_of_a_part_or_none() -> None:
    piece = Piece("", [5], [{5: Logprob(-1.0, 1)}])

    def first(vocabulary: Vocabulary) -> object:
        return chat_logprobs(piece, num_top=0, vocabulary=vocabulary)["content"][0]["bytes"]

    assert first(BYTE_LEVEL) == [0xE2]
    assert first(UNREADABLE) is None


def test_the_logprobs_of_a_prompt_name_their_tokens_and_hold_only_numbers() -> None:
    output = RequestOutput("r", None, [1, 5], [None, {5: Logprob(float("-inf"), 9)}], [], True)

    token = {"logprob": -9999.0, "rank": 9, "decoded_token": "5"}
    assert prompt_logprobs(output, Vocabulary(str)) == [None, {"5": token}]
