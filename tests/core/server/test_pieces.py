from __future__ import annotations

from loramux.outputs import CompletionOutput, Logprob
from loramux.server.pieces import AnswerCursor, Piece, chat_logprobs, completion_logprobs


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


def test_minus_infinity_becomes_a_number_that_json_has() -> None:
    entry = {5: Logprob(float("-inf"), 9, "x"), 6: Logprob(-0.1, 1, "y")}
    piece = Piece("x", [5], [entry])

    assert completion_logprobs(piece, num_top=1, offset=0, text_of=str)["token_logprobs"] == [-9999.0]
    assert chat_logprobs(piece, num_top=1, text_of=str) == {
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

    logprobs = completion_logprobs(Piece("c", [5], [entry]), num_top=2, offset=4, text_of=str)

    assert list(logprobs["top_logprobs"][0]) == ["c", "a", "b"]
    assert logprobs["text_offset"] == [4]


def test_a_token_without_a_text_of_its_own_gets_one() -> None:
    entry = {5: Logprob(-1.0, 1, None)}

    assert completion_logprobs(Piece("?", [5], [entry]), num_top=0, offset=0, text_of=str)["tokens"] == ["5"]
