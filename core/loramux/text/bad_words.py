"""Bad words as the token sequences that must not come up in an answer."""

from __future__ import annotations

from collections.abc import Sequence

from loramux.errors import RequestInvalid
from loramux.text.tokenizer import Tokenizer


def encode_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Encode each word as it stands at the start of a text and after a space, as vLLM does.

    Raises RequestInvalid for a word of which no token is left.
    """
    encoded: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (bare, f" {bare}") if bare else (word,):
            token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if not token_ids:
                raise RequestInvalid(f"bad_words must be words that have tokens, got {word!r}", param="bad_words")
            encoded[token_ids] = None
    return tuple(encoded)
