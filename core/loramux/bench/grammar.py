"""The words in which a load is described on the command line: `KIND:NUMBER:NUMBER`, split and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loramux.errors import ConfigInvalid


def split_spec(setting: str, text: str, kinds: Mapping[str, Sequence[int]], accepted: str) -> tuple[str, list[str]]:
    """Return kind and numbers of a text; `kinds` has how many numbers each kind may have. Raises ConfigInvalid."""
    kind, *numbers = text.split(":")
    if kind not in kinds or len(numbers) not in kinds[kind]:
        raise refusal(setting, text, accepted)
    return kind, numbers


def read_count(setting: str, text: str, number: str, accepted: str) -> int:
    """Read a whole number of at least 1 that is part of `text`; raises ConfigInvalid."""
    if not (number.isascii() and number.isdigit() and int(number) >= 1):
        raise refusal(setting, text, accepted)
    return int(number)


def read_positive(setting: str, text: str, number: str, accepted: str) -> float:
    """Read a finite number above 0 that is part of `text`; raises ConfigInvalid."""
    try:
        value = float(number)
    except ValueError as exc:
        raise refusal(setting, text, accepted) from exc
    if not (math.isfinite(value) and value > 0):
        raise refusal(setting, text, accepted)
    return value


def refusal(setting: str, text: str, accepted: str) -> ConfigInvalid:
    """Say which setting is wrong, what it is, and what it may be."""
    return ConfigInvalid(f"{setting} must be {accepted}; got {text!r}")
