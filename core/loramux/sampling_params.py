"""SamplingParams: how one request wants its tokens chosen, and when it wants them to stop.

Every value is checked once, here, when the object is built; what holds a SamplingParams may trust it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux.errors import RequestInvalid
from loramux.structured_outputs import StructuredOutputsParams

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy: dividing logits by less overflows float32 before it changes the choice."""

MAX_LOGPROBS = 1000
MAX_LOGIT_BIAS = 100.0
MAX_BAD_WORDS = 64
MAX_BAD_WORD_LENGTH = 256


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Say how tokens are chosen and where the text ends; the names, order and defaults are vLLM's.

    `temperature` 0 is greedy; `top_k` 0 or -1, `top_p` 1 and `min_p` 0 are off. `max_tokens` None means to the end of
    the context. `seed` makes the tokens of a sampled request repeatable; without it they are random. `logprobs` asks
    for that many alternatives beside each chosen token. `stop` may be one string or several and reads back as a tuple
    (`stop_strings` is the same with the exact type). `allowed_token_ids` are the only ones that may be chosen, end
    tokens too only if named. `bad_words` never come up in the answer as the tokens that they are encoded to, with a
    space before them or without. `structured_outputs` holds every answer to JSON, a regex, choices or a grammar; it
    then ends where nothing can follow, and `min_tokens` and `ignore_eos` keep it going only while something can.
    Raises RequestInvalid, which names field, value and range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = ()
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        """Check every field and bring the collections to tuples and a private dict."""
        self._check_numbers()
        self._check_lengths()
        for field in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, field), bool):
                raise _refusal(field, getattr(self, field), "true or false")
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "stop_token_ids", _checked_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "bad_words", _checked_bad_words(self.bad_words))
        if self.allowed_token_ids is not None:
            allowed = tuple(dict.fromkeys(_checked_ids("allowed_token_ids", self.allowed_token_ids)))
            if not allowed:
                raise _refusal("allowed_token_ids", self.allowed_token_ids, "a list of at least one token id")
            object.__setattr__(self, "allowed_token_ids", allowed)
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise _refusal("structured_outputs", self.structured_outputs, "StructuredOutputsParams")
        if self.stop and not self.detokenize:
            raise _refusal("stop", self.stop, "empty when detokenize is false: stop strings are searched in the text")
        if self.n > 1 and self.is_greedy:
            raise _refusal("n", self.n, "1 when using greedy sampling (temperature 0): all answers would be equal")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, in the order given."""
        stop = self.stop
        return stop if isinstance(stop, tuple) else ()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids that a model with this vocabulary does not have; RequestInvalid names them."""
        known = f"token ids from 0 to {vocab_size - 1}"
        for token_id in self.logit_bias or ():
            if token_id >= vocab_size:
                raise _refusal("logit_bias", token_id, f"keyed by {known}")
        for field, token_ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids),
        ):
            highest = max(token_ids or (), default=0)
            if highest >= vocab_size:
                raise _refusal(field, highest, known)

    def _check_numbers(self) -> None:
        for field in ("presence_penalty", "frequency_penalty"):
            self._take_float(field, -2.0, 2.0, "a number from -2 to 2")
        self._take_float("temperature", 0.0, 2.0, "a number from 0 to 2")
        self._take_float("min_p", 0.0, 1.0, "a number from 0 to 1")
        self._take_float("repetition_penalty", math.ulp(0.0), math.inf, "a finite number above 0")
        self._take_float("top_p", math.ulp(0.0), 1.0, "a number above 0 and at most 1")

    def _check_lengths(self) -> None:
        _check_int("n", self.n, 1, None)
        _check_int("top_k", self.top_k, -1, None)
        _check_int("min_tokens", self.min_tokens, 0, None)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, None)
            if self.min_tokens > self.max_tokens:
                raise _refusal("min_tokens", self.min_tokens, f"from 0 to max_tokens ({self.max_tokens})")
        for field, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _check_int(field, value, 0, MAX_LOGPROBS)

    def _take_float(self, field: str, low: float, high: float, accepted: str) -> None:
        number = _finite(getattr(self, field))
        if number is None or not low <= number <= high:
            raise _refusal(field, getattr(self, field), accepted)
        object.__setattr__(self, field, number)


def _refusal(field: str, value: object, accepted: str) -> RequestInvalid:
    shown = repr(value)
    if len(shown) > 100:
        shown = shown[:100] + "…"
    return RequestInvalid(f"{field} must be {accepted}, got {shown}", param=field)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_int(field: str, value: object, low: int, high: int | None) -> None:
    accepted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        raise _refusal(field, value, accepted)


def _checked_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) and string for string in strings):
        raise _refusal("stop", stop, "a non-empty string or a list of non-empty strings")
    return tuple(strings)


def _checked_ids(field: str, ids: object) -> tuple[int, ...]:
    ids = () if ids is None else ids
    if not isinstance(ids, list | tuple | set | frozenset | range):
        raise _refusal(field, ids, "a list of token ids of at least 0")
    if not all(_is_int(token_id) and token_id >= 0 for token_id in ids):
        raise _refusal(field, ids, "a list of token ids of at least 0")
    return tuple(ids)


def _checked_bad_words(words: object) -> tuple[str, ...]:
    words = () if words is None else words
    if not isinstance(words, list | tuple) or not all(_is_bad_word(word) for word in words):
        raise _refusal("bad_words", words, f"a list of non-empty strings of at most {MAX_BAD_WORD_LENGTH} characters")
    if len(words) > MAX_BAD_WORDS:
        raise _refusal("bad_words", f"{len(words)} of them", f"a list of at most {MAX_BAD_WORDS} words")
    return tuple(words)


def _is_bad_word(word: object) -> bool:
    if not isinstance(word, str) or not 0 < len(word) <= MAX_BAD_WORD_LENGTH:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in word)  # no tokenizer takes lone surrogates


def _checked_bias(bias: object) -> dict[int, float] | None:
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise _refusal("logit_bias", bias, "a mapping from token ids to numbers")
    checked: dict[int, float] = {}
    for token_id, value in bias.items():
        if not _is_int(token_id) or token_id < 0:
            raise _refusal("logit_bias", token_id, "keyed by token ids of at least 0")
        number = _finite(value)
        if number is None or abs(number) > MAX_LOGIT_BIAS:
            raise _refusal("logit_bias", {token_id: value}, f"numbers from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}")
        checked[token_id] = number
    return checked or None
