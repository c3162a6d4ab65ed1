"""Grammar and GrammarMatcher: what an answer must match, and how far one answer has come in it.

llguidance does the work. A matcher that meets a limit, or a token that it never allowed, is in error for good; nothing
here raises for it, so that one broken grammar is one request's trouble.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

TokenBits = npt.NDArray[np.uint8]
"""One bit per token id, the lowest id in the lowest bit; ids beyond the end are not in the set."""

MAX_SHOWN_REASON = 300
NO_TEXT = "no text can match it"


class Grammar:
    """One request's compiled grammar. Not for two threads at once.

    Its answers share one lexer and what that may cost; so two requests never share a grammar, however alike they are.
    """

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> GrammarMatcher:
        """Start an answer."""
        return GrammarMatcher(self._start.deep_copy())


class GrammarMatcher:
    """Where one answer stands in its grammar. Not for two threads at once."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed_tokens(self) -> TokenBits:
        """Tell which tokens may come next, end tokens included where the text may end; none at all after an error."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.zeros_like(bits) if self._matcher.is_error() else bits

    def take(self, token_id: int) -> bool:
        """Go on by the token that was chosen; False when that is an error."""
        return self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the text matches and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why this answer cannot go on, in llguidance's words."""
        return error_of(self._matcher)


def error_of(matcher: LLMatcher) -> str | None:
    """Bring llguidance's message to one that a client may read; None while all is well."""
    if not matcher.is_error():
        return None
    reason = re.split(r"\n<(?:non-verbose|state)", matcher.get_error())[0].strip()
    if reason.startswith("NoExtension"):
        return NO_TEXT
    return reason if len(reason) <= MAX_SHOWN_REASON else reason[:MAX_SHOWN_REASON] + "…"
