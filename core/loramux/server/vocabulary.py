"""What a single token is called: its text, or its bytes where it is only part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import tokenizers

BytesOf = Callable[[int], bytes | None]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


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


def token_bytes(backend: tokenizers.Tokenizer) -> BytesOf:
    """Tell the bytes of a token where the tokenizer's decoder has a rule for them; added tokens have no such rule."""
    kinds = _decoder_kinds(backend)
    if "ByteLevel" in kinds:
        return lambda token_id: _from_alphabet(backend.id_to_token(token_id))
    if "ByteFallback" in kinds:
        return lambda token_id: _from_fallback(backend.id_to_token(token_id))
    return lambda _: None


def _decoder_kinds(backend: tokenizers.Tokenizer) -> set[str]:
    if backend.decoder is None:
        return set()
    decoder = json.loads(backend.decoder.__getstate__())
    return {part["type"] for part in decoder.get("decoders", [decoder])}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write any byte as a visible character: itself if it is one, else the next unused from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _from_alphabet(token: str | None) -> bytes | None:
    if token is None or not set(token) <= _ALPHABET.keys():
        return None
    return bytes(_ALPHABET[character] for character in token)


def _from_fallback(token: str | None) -> bytes | None:
    match = _BYTE_TOKEN.fullmatch(token or "")
    return bytes.fromhex(match[1]) if match else None


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _num_characters(raw: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in raw)  # all but UTF-8's continuation bytes
