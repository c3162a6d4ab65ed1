"""IncrementalDetokenizer: a sequence's tokens to the text that may be shown, up to its stop string.

The text shown only ever grows, and what is shown is always a prefix of the final text: characters that are not whole
and letters that may belong to a stop string are held back until they are decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramux.sampling_params import SamplingParams
from loramux.text.decode_window import DecodeWindow
from loramux.text.stop_strings import StopMatch, StopStrings
from loramux.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of one answer. Not for two threads at once; without a tokenizer there is no text.

    The stop string that starts first in the text after a token wins, and the first listed among those that start
    together. None is matched in text that was complete with fewer than `min_tokens` tokens. A token that itself ends
    the answer (end of sequence, a stop token id) is the caller's: append it only if its text is wanted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._window = (
            None
            if tokenizer is None
            else DecodeWindow(tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens)
        )
        self._stop = StopStrings(stop)
        self._includes_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._decoded = ""
        self._num_open = 0
        self._match: StopMatch | None = None

    @classmethod
    def for_request(
        cls, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> IncrementalDetokenizer:
        """Build the detokenizer that these parameters ask for."""
        return cls(
            tokenizer if params.detokenize else None,
            prompt_token_ids,
            stop=params.stop_strings,
            include_stop_str_in_output=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None while it goes on."""
        return None if self._match is None else self._match.stop_string

    @property
    def text(self) -> str:
        """The text that is certain: a prefix of whatever the final text will be."""
        return self._decoded[: len(self._decoded) - self._num_open] if self._num_open else self._decoded

    def append(self, token_id: int) -> None:
        """Take the next token of the answer; after a stop string it changes nothing."""
        self._num_tokens += 1
        if self._window is not None and self._match is None:
            self._grow(self._window.push(token_id))

    def finish(self) -> str:
        """Decide all that was held back, and return the whole final text; it may hold a last stop string.

        A character that was begun and never ended is no part of it.
        """
        if self._window is not None and self._match is None:
            self._grow(self._window.flush())
            self._num_open = 0  # nothing can grow any more
        return self._decoded

    def _grow(self, piece: str) -> None:
        if not piece:
            return
        searched = len(self._decoded)
        self._decoded += piece
        num_open = self._stop.follow(piece)
        self._num_open = 0 if self._includes_stop else num_open
        if self._num_tokens < self._min_tokens:
            return
        self._match = self._stop.find(self._decoded, ends_after=searched)
        if self._match is not None:
            self._decoded = self._decoded[: self._match.end if self._includes_stop else self._match.start]
            self._num_open = 0
