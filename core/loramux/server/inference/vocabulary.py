"""What a single token is called: its text, or its bytes where it is only part of a character."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loramux.text.token_bytes import BytesOf


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token as clients see it; `raw` is None where its bytes are unknown.

    `num_characters` is what it adds to a text: a character that several tokens share counts with the first of them.
    """

    text: str
    raw: bytes | None
    num_characters: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names tokens; `text_of` may say U+FFFD for a part of a character, then `bytes_of` is asked."""

    text_of: Callable[[int], str]
    bytes_of: BytesOf = lambda _: None

    def show(self, token_id: int, text: str | None = None) -> ShownToken:
        """Name a token; tokens that are different parts of characters get different names."""
        text = self.text_of(token_id) if text is None else text
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return ShownToken(text, text.encode(), len(text))
        raw = self.bytes_of(token_id)
        if raw is None or _is_text(raw):
            return ShownToken(text, raw, len(text))
        return ShownToken("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw, _num_characters(raw))


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _num_characters(raw: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in raw)  # all but UTF-8's continuation bytes
