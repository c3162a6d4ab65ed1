"""Tokenizer: text and chat messages to token ids and back, safe to call from any thread.

It talks to the Rust tokenizer itself rather than through transformers' call methods: those set padding and truncation
on the shared object at every call, which fails when two threads do it at once. So nothing changes after loading.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loramux.errors import ConfigInvalid, ContextLengthExceeded, RequestInvalid
from loramux.text.chat_messages import plain_messages
from loramux.text.token_bytes import BytesOf, token_bytes

# What a chat template, a program that came with the model, may raise when the messages are not what it expects.
_TEMPLATE_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# Arguments of apply_chat_template that decide what comes back: ours to set, not the client's.
_RESERVED = {"conversation", "tokenize", "padding", "truncation", "max_length", "tokenizer_kwargs"}


class Tokenizer:
    """One model's tokenizer. `hf` is transformers' object: read it, but do not call it while others may."""

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        self.hf = hf
        self.backend: tokenizers.Tokenizer = hf.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        added = self.backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.eos_token_ids: tuple[int, ...] = () if hf.eos_token_id is None else (int(hf.eos_token_id),)
        self.vocab_size = self.backend.get_vocab_size(with_added_tokens=True)
        self.token_bytes: BytesOf = token_bytes(self.backend)
        self.token_text = functools.lru_cache(maxsize=65536)(self._token_text)

    @classmethod
    def load(cls, folder_or_id: str | Path, gguf_file: str | None = None) -> Tokenizer:
        """Load from a local folder, a Hub id, or a GGUF file in one of them; ConfigInvalid when that fails."""
        source = {"gguf_file": gguf_file} if gguf_file is not None else {}
        try:
            hf = AutoTokenizer.from_pretrained(str(folder_or_id), **source)
        except (OSError, ValueError, ImportError, KeyError) as exc:
            raise ConfigInvalid(f"tokenizer {str(folder_or_id)!r} could not be loaded: {exc}") from exc
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise ConfigInvalid(
                f"tokenizer {str(folder_or_id)!r} is a {type(hf).__name__}, which has no fast version: "
                "a tokenizer.json is needed"
            )
        return cls(hf)

    def encode(self, text: str, add_special_tokens: bool = True, *, context: int | None = None) -> list[int]:
        """Turn text into token ids, without holding the interpreter's lock.

        Raises RequestInvalid when the text is not valid Unicode, and ContextLengthExceeded, before any work, when it is
        so long that it can never fit into `context` tokens.
        """
        try:
            nbytes = len(text.encode())
        except UnicodeEncodeError as exc:
            raise RequestInvalid(
                f"prompt must be valid Unicode text, got a lone surrogate at character {exc.start}", param="prompt"
            ) from exc
        if context is not None and nbytes > context * self._longest_token_nbytes:
            raise ContextLengthExceeded.of_bytes(context, nbytes=nbytes)
        # the batch form lets other threads run; the single one keeps the interpreter's lock for the whole text
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turn token ids into text as the decoder gives it, without the clean-up of spaces that some configs ask for.

        Streamed text could not have it either. Ids that the vocabulary lacks give no text.
        """
        try:
            return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except OverflowError as exc:
            raise RequestInvalid("token ids must be from 0 to 4294967295", param="tokens") from exc

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **template_arguments: Any) -> str:
        """Write messages as the one text that the model was trained on, by its chat template.

        Ends with the opening of the assistant's turn unless `add_generation_prompt` or `continue_final_message` says
        otherwise. Raises RequestInvalid when there is no template, or when it does not take these messages.
        """
        for name in template_arguments:
            if name in _RESERVED or name.startswith("return_"):
                raise RequestInvalid(f"{name!r} is no argument of a chat template", param="chat_template_kwargs")
        if self.hf.chat_template is None and template_arguments.get("chat_template") is None:
            raise RequestInvalid(
                "this model has no chat template: send the text as a completion, or give a chat_template",
                param="messages",
                code="no_chat_template",
            )
        if not template_arguments.get("continue_final_message"):
            template_arguments.setdefault("add_generation_prompt", True)
        conversation = plain_messages(messages)
        try:
            return str(self.hf.apply_chat_template(conversation, tokenize=False, **template_arguments))
        except _TEMPLATE_FAULTS as exc:
            # what a template raises on purpose is meant to be read; anything else would show the inside of a library
            reason = str(exc) if isinstance(exc, TemplateError) else "it cannot be rendered with them"
            raise RequestInvalid(f"messages do not fit the model's chat template: {reason}", param="messages") from exc

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, context: int | None = None, **template_arguments: Any
    ) -> list[int]:
        """Turn messages into token ids: render_chat, then encode; the template writes the special tokens itself."""
        return self.encode(self.render_chat(messages, **template_arguments), add_special_tokens=False, context=context)

    def _token_text(self, token_id: int) -> str:
        """Tell what one token adds to a text, its leading space included; U+FFFD for part of a character."""
        before = self.decode(self._anchor, skip_special_tokens=False)
        after = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        if before and after.startswith(before):
            return after[len(before) :]
        return self.decode([token_id], skip_special_tokens=False)

    @functools.cached_property
    def _longest_token_nbytes(self) -> float:
        """How many bytes of text one token can stand for; unbounded where text may shrink or fold into an unknown."""
        model = self.backend.model
        added = self.backend.get_added_tokens_decoder().values()
        swallows_space = any(token.lstrip or token.rstrip for token in added)
        is_plain = isinstance(model, tokenizers.models.BPE) and not model.fuse_unk
        if not is_plain or self.backend.normalizer is not None or swallows_space:
            return math.inf
        return max(len(token.encode()) for token in self.backend.get_vocab(with_added_tokens=True))

    @functools.cached_property
    def _anchor(self) -> list[int]:
        """Something for a token to stand behind: decoders drop the space of the very first token."""
        return self.encode("a", add_special_tokens=False)[-1:]
