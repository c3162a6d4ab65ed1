"""Prompts: what a caller may give as one, and its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

from loramux.errors import RequestInvalid
from loramux.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """text is None when the caller gave token ids. cache_salt is that of a mapping."""

    text: str | None
    token_ids: tuple[int, ...]
    cache_salt: str | None = None


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer, *, vocab_size: int, context: int) -> TokenizedPrompt:
    """Accept a string, a list of token ids, {"prompt": …} or {"prompt_token_ids": …}, the last two with a "cache_salt".

    Raises RequestInvalid for anything else, for an empty prompt, for ids that the model does not have, and for text
    that is clearly too long for `context` tokens.
    """
    cache_salt = None
    if isinstance(prompt, Mapping):
        cache_salt = checked_salt(prompt.get("cache_salt"))
        prompt = _from_mapping(prompt)
    if isinstance(prompt, str):
        token_ids = tuple(tokenizer.encode(prompt, context=context))
        text: str | None = prompt
    else:
        token_ids = _checked_ids(prompt, vocab_size)
        text = None
    if not token_ids:
        raise RequestInvalid("prompt must hold at least one token, got an empty one", param="prompt")
    return TokenizedPrompt(text, token_ids, cache_salt)


def checked_salt(cache_salt: object) -> str | None:
    """Return a salt that keeps something apart, or None. Raises RequestInvalid for anything else."""
    if cache_salt is None or (isinstance(cache_salt, str) and cache_salt):
        return cache_salt
    raise RequestInvalid(
        f"cache_salt must be a non-empty string, got {type(cache_salt).__name__} {cache_salt!r:.60}", param="cache_salt"
    )


def _from_mapping(prompt: Mapping[str, object]) -> str | Sequence[int]:
    for key in ("prompt_token_ids", "prompt"):
        value = prompt.get(key)
        if isinstance(value, str | list | tuple):
            return value
    raise RequestInvalid(
        f"a prompt given as a mapping needs 'prompt' or 'prompt_token_ids', got the keys {sorted(prompt)}",
        param="prompt",
    )


def _checked_ids(prompt: object, vocab_size: int) -> tuple[int, ...]:
    if hasattr(prompt, "tolist"):  # a numpy array or a tensor
        prompt = prompt.tolist()
    if not isinstance(prompt, list | tuple):
        raise RequestInvalid(
            f"prompt must be a string or a list of token ids, got {type(prompt).__name__}", param="prompt"
        )
    for token_id in prompt:
        if isinstance(token_id, bool) or not isinstance(token_id, Integral) or not 0 <= int(token_id) < vocab_size:
            raise RequestInvalid(
                f"prompt token ids must be integers from 0 to {vocab_size - 1}, got {token_id!r}", param="prompt"
            )
    return tuple(int(token_id) for token_id in prompt)
