"""DecodeWindow: token ids to text piece by piece, where no piece is ever taken back.

What one token means depends on its neighbours: a character may be spread over several tokens, and a decoder drops the
space before the first token of a text. So the window always decodes the unread tokens together with the ones before
them, and gives out what the unread ones add. `tokenizers.decoders.DecodeStream` works the same way, but it cannot be
flushed, raises when a byte token makes the run before it invalid, and holds back an invalid run without bound, decoding
all of it again at each step.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from loramux.text.tokenizer import Tokenizer

UNDECIDED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for bytes that are no character: wrong for good, or not whole yet."""

MAX_CHARACTER_BYTES = 4
MAX_CHARACTER_TOKENS = MAX_CHARACTER_BYTES
"""UTF-8 takes four bytes at most, and a token has at least one."""

MAX_UNREAD = 16
NUM_CONTEXT_TOKENS = 5


class DecodeWindow:
    """The text that comes after a prompt: all pieces joined are decode(prompt + output) without decode(prompt).

    This holds for every decoder whose text only grows with more tokens. The one that matters and does not is byte
    fallback, which turns a whole run of byte tokens into U+FFFD when one is wrong: characters of the run that were
    already given out then stay, and only what follows becomes U+FFFD.

    A character that the output begins and does not end is left out where the bytes of its tokens are known; bytes that
    nothing could make a character of are U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._context = self._tail(prompt_token_ids)
        self._context_text = self._decode(self._context)
        self._whole_prompt_text: str | None = self._whole_text(self._context)
        self._unread: list[int] = []

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain now, often that token's, sometimes none or more."""
        if token_id in self._skipped:
            return ""
        self._unread.append(token_id)
        text = self._unread_text()
        if text and not text.endswith(UNDECIDED):
            return self._give_out(len(self._unread), text)
        if len(self._unread) >= MAX_UNREAD:
            return self._give_out_surely_broken()
        return ""

    def flush(self) -> str:
        """Return what was held back, because no more tokens follow, but for the beginning of a character."""
        num_kept, num_begun_bytes = len(self._unread), self._num_begun_bytes()
        while num_kept and num_begun_bytes:
            num_bytes = len(self._tokenizer.token_bytes(self._unread[num_kept - 1]) or b"")
            if num_bytes > num_begun_bytes:  # the token has the end of another character, too
                break
            num_begun_bytes -= num_bytes
            num_kept -= 1
        text = self._give_out(len(self._unread), self._text_after_context(self._unread[:num_kept]))
        return text.removesuffix(UNDECIDED) if num_begun_bytes else text

    def _num_begun_bytes(self) -> int:
        """Count the last bytes that begin a character which more bytes could end; 0 where they are unknown."""
        tail = b""
        for token_id in reversed(self._context + self._unread):
            raw = self._tokenizer.token_bytes(token_id)
            if raw is None or len(tail) >= MAX_CHARACTER_BYTES:
                break
            tail = raw + tail
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        begun, _ = decoder.getstate()
        can_end = begun.decode(errors="replace") == UNDECIDED  # not so half a surrogate, which Python keeps, too
        return len(begun) if can_end else 0

    def _tail(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """Find the last few tokens of the prompt that start at a whole character."""
        tail: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if token_id in self._skipped:
                continue
            tail.insert(0, token_id)
            is_whole = self._whole_text(tail)[:1] not in ("", UNDECIDED)
            if len(tail) >= MAX_UNREAD or (len(tail) >= NUM_CONTEXT_TOKENS and is_whole):
                break
        return tail

    def _whole_text(self, token_ids: list[int]) -> str:
        """Decode without the last few tokens if they are the beginning of a character."""
        for num_dropped in range(min(MAX_CHARACTER_TOKENS, len(token_ids))):
            text = self._decode(token_ids[: len(token_ids) - num_dropped])
            if not text.endswith(UNDECIDED):
                return text
        return ""

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.backend.decode(token_ids, skip_special_tokens=False)

    def _unread_text(self) -> str:
        return self._text_after_context(self._unread)

    def _text_after_context(self, token_ids: list[int]) -> str:
        text = self._decode(self._context + token_ids)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        if self._whole_prompt_text is not None:  # the prompt ended within a character, and this completes it
            num_known = (_num_equal(text, before) for before in (self._context_text, self._whole_prompt_text))
            return text[max(num_known) :]
        return self._decode(token_ids)  # these tokens made the text before them invalid, but that was given out

    def _give_out(self, num_tokens: int, text: str) -> str:
        kept = self._context if self._whole_prompt_text is not None else []  # the first character may start there
        self._context, self._unread = kept + self._unread[:num_tokens], self._unread[num_tokens:]
        self._context_text = self._decode(self._context)
        self._whole_prompt_text = None
        return text

    def _give_out_surely_broken(self) -> str:
        """Give out the start of a long broken run, cut where no character, not even a broken one, is cut in two."""
        whole = self._unread_text()
        last_cut = len(self._unread) - MAX_CHARACTER_TOKENS
        for cut in range(last_cut, last_cut - MAX_CHARACTER_TOKENS, -1):
            start = self._text_after_context(self._unread[:cut])
            if start + self._decode(self._unread[cut:]) == whole:
                return self._give_out(cut, start)
        return self._give_out(last_cut, self._text_after_context(self._unread[:last_cut]))


def _num_equal(text: str, other: str) -> int:
    """Count the characters that two texts have in common from the start."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((index for index, (one, another) in pairs if one != another), min(len(text), len(other)))
