"""GrammarCompiler: from what a client wrote to a Grammar for one model's tokens, at a bounded cost."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from loramux.errors import RequestInvalid
from loramux.structured_outputs import StructuredOutputsParams
from loramux.text.grammar import NO_TEXT, Grammar, error_of
from loramux.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_CHECKED_GRAMMARS = 32

LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,  # at worst some 0.2 s of the thread that compiles
    step_lexer_fuel=50_000,  # at worst some 10 ms of a step, which everybody shares
    verbose_errors=False,  # they would show a client the parser's inside
)
"""What a grammar may cost; both fuels are below llguidance's own, which let one regex stop all others for 0.6 s.

Lexer states stay at the library's 250,000: a long string with a maxLength takes some 20 a token.
"""

JSON_DEFAULTS: JsonCompileOptions = {"whitespace_pattern": r"[\x20\n\t\r]{0,64}"}
"""Room for a line break and indentation: JSON allows white space without end, and weak models write it without end."""


class GrammarCompiler:
    """Compiles for one model. Any thread may call it, and others run meanwhile.

    The first call of all also reads the tokenizer, which takes up to a second.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = max(vocab_size, tokenizer.vocab_size)
        self._eos_token_ids = sorted(token_id for token_id in eos_token_ids if token_id < self._vocab_size)
        self._checked: LRUCache[StructuredOutputsParams, Grammar] = LRUCache(MAX_CHECKED_GRAMMARS)
        self._lock = threading.Lock()

    def check(self, params: StructuredOutputsParams) -> None:
        """Compile ahead, for the request that comes next. Raises RequestInvalid with llguidance's reason."""
        with self._lock:
            is_checked = params in self._checked
        if not is_checked:
            grammar = Grammar(self._start(params))
            with self._lock:
                self._checked[params] = grammar

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """Return a grammar for one request, that of `check` if it is there. Raises RequestInvalid too."""
        with self._lock:
            grammar = self._checked.pop(params, None)
        return Grammar(self._start(params)) if grammar is None else grammar

    def _start(self, params: StructuredOutputsParams) -> LLMatcher:
        try:
            source = _source(params)
        except ValueError as exc:  # a schema that is no JSON
            raise _refusal(params, str(exc)) from exc
        matcher = LLMatcher(self._tokens, source, log_level=0, limits=LIMITS)
        reason = error_of(matcher) or _try_out(matcher)
        if reason is not None:
            raise _refusal(params, reason)
        return matcher

    @functools.cached_property
    def _tokens(self) -> LLTokenizer:
        try:
            return LLTokenizer(
                self._tokenizer.backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids or None
            )
        except ValueError as exc:
            raise RequestInvalid(
                f"structured_outputs cannot be used with this model: its tokenizer does not tell the bytes of its "
                f"tokens ({exc})",
                param="structured_outputs",
            ) from exc


def _try_out(matcher: LLMatcher) -> str | None:
    """Tell why a compiled grammar still cannot be used. Its first steps are the dearest: taken here, they delay nobody.

    llguidance builds most things when they are first needed. What the start needs stays with the matcher.
    """
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if not matcher.is_error() and not bits.any():
        return NO_TEXT
    ahead = matcher.deep_copy()
    ahead.consume_tokens(ahead.compute_ff_tokens())
    ahead.compute_bitmask()
    return error_of(matcher) or error_of(ahead)


def _source(params: StructuredOutputsParams) -> str:
    """Write a grammar in llguidance's own form."""
    if params.json_object:
        return LLMatcher.grammar_from_json_schema({"type": "object"}, defaults=JSON_DEFAULTS)
    if params.json is not None:
        assert isinstance(params.json, str)
        defaults = None if '"x-guidance"' in params.json else JSON_DEFAULTS  # the schema's own take no addition
        return LLMatcher.grammar_from_json_schema(params.json, defaults=defaults)
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in params.choice))
    assert params.grammar is not None
    return LLMatcher.grammar_from_lark(params.grammar)


def _refusal(params: StructuredOutputsParams, reason: str) -> RequestInvalid:
    return RequestInvalid(f"structured_outputs.{params.kind} cannot be used: {reason}", param="structured_outputs")
