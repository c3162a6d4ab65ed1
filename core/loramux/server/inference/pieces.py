"""What an answer gained since the last look, and the two shapes in which clients get its log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loramux.outputs import CompletionOutput, Logprob, RequestOutput
from loramux.server.inference.vocabulary import ShownToken, Vocabulary

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

TokenLogprobs = Mapping[int, Logprob] | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer with its tokens; `logprobs` has one entry per token when they were asked for."""

    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()

    def __add__(self, later: Piece) -> Piece:
        return Piece(
            self.text + later.text,
            [*self.token_ids, *later.token_ids],
            [*self.logprobs, *later.logprobs],
        )


class AnswerCursor:
    """How much of one answer was taken already."""

    def __init__(self) -> None:
        self._num_characters = 0
        self._num_tokens = 0

    def take(self, answer: CompletionOutput) -> Piece:
        """Give what is new in a cumulative answer, and count it as taken."""
        characters, tokens = self._num_characters, self._num_tokens
        self._num_characters, self._num_tokens = len(answer.text), len(answer.token_ids)
        return Piece(answer.text[characters:], answer.token_ids[tokens:], (answer.logprobs or [])[tokens:])


def completion_logprobs(piece: Piece, *, num_top: int, offset: int, vocabulary: Vocabulary) -> dict[str, list[object]]:
    """Four parallel lists, the shape of /v1/completions; `offset` is where the piece starts in its choice's text."""
    shape: dict[str, list[object]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=True):
        token = _shown(token_id, entry, vocabulary)
        shape["text_offset"].append(offset)
        shape["tokens"].append(token.text)
        shape["token_logprobs"].append(None if entry is None else _number(entry[token_id]))
        shape["top_logprobs"].append(None if entry is None else _by_text(entry, token_id, num_top, vocabulary))
        offset += token.num_characters
    return shape


def num_characters(piece: Piece, vocabulary: Vocabulary) -> int:
    """How far the tokens of a piece bring the `offset` of `completion_logprobs`."""
    return sum(
        _shown(token_id, entry, vocabulary).num_characters
        for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=True)
    )


def chat_logprobs(piece: Piece, *, num_top: int, vocabulary: Vocabulary) -> dict[str, object]:
    """One object per token, the shape of /v1/chat/completions."""
    content = []
    for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=True):
        if entry is not None:
            top = [_chat_token(other, entry, vocabulary) for other in _most_likely(entry, num_top)]
            content.append({**_chat_token(token_id, entry, vocabulary), "top_logprobs": top})
    return {"content": content}


def prompt_logprobs(output: RequestOutput, vocabulary: Vocabulary) -> list[dict[str, object] | None] | None:
    """What the model thought of each prompt token; None for the first, or when nobody asked."""
    if output.prompt_logprobs is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token_id): {
                "logprob": _number(item),
                "rank": item.rank,
                "decoded_token": _shown(token_id, entry, vocabulary).text,
            }
            for token_id, item in entry.items()
        }
        for entry in output.prompt_logprobs
    ]


def usage(outputs: Iterable[RequestOutput], *, num_uncounted: int = 0) -> dict[str, object]:
    """Count the tokens of a request; `num_uncounted` answer tokens were not asked for by the client."""
    outputs = list(outputs)
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_answer = sum(len(answer.token_ids) for output in outputs for answer in output.outputs) - num_uncounted
    return {
        "prompt_tokens": num_prompt,
        "total_tokens": num_prompt + num_answer,
        "completion_tokens": num_answer,
        "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
    }


def _by_text(entry: Mapping[int, Logprob], token_id: int, num_top: int, vocabulary: Vocabulary) -> dict[str, float]:
    by_text: dict[str, float] = {}
    for other in (token_id, *_most_likely(entry, num_top)):  # the chosen one first: it keeps a text that others share
        by_text.setdefault(_shown(other, entry, vocabulary).text, _number(entry[other]))
    return by_text


def _most_likely(entry: Mapping[int, Logprob], num_top: int) -> list[int]:
    return sorted(entry, key=lambda token_id: entry[token_id].rank or 0)[:num_top]


def _chat_token(token_id: int, entry: Mapping[int, Logprob], vocabulary: Vocabulary) -> dict[str, object]:
    token = _shown(token_id, entry, vocabulary)
    raw = None if token.raw is None else list(token.raw)
    return {"token": token.text, "logprob": _number(entry[token_id]), "bytes": raw}


def _shown(token_id: int, entry: TokenLogprobs, vocabulary: Vocabulary) -> ShownToken:
    return vocabulary.show(token_id, None if entry is None else entry[token_id].decoded_token)


def _number(logprob: Logprob) -> float:
    return max(LOWEST_LOGPROB, logprob.logprob)  # in this order NaN becomes the lowest, too
