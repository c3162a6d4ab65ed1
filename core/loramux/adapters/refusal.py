"""Refusal: why an adapter cannot be served, before its name is known; `read_adapter` turns it into AdapterInvalid."""

from __future__ import annotations

from loramux.errors import LoramuxError

MAX_SHOWN_CHARACTERS = 128


class Refusal(LoramuxError):
    """One adapter is not served; `reason`, `code` and `may_heal` are those of AdapterInvalid."""

    def __init__(self, reason: str, *, code: str = "adapter_invalid", may_heal: bool = False) -> None:
        super().__init__(reason)
        self.may_heal = may_heal
        self.reason = reason
        self.code = code


def shown(value: object) -> str:
    """Return the value as a message may carry it: escaped, and short whatever the file says."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"
