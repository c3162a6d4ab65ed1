"""Which bytes a single token stands for: they may be only a part of a character, or parts of two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import tokenizers

BytesOf = Callable[[int], bytes | None]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


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
