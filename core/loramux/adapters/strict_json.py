"""Strict JSON: an object that any two readers understand alike, of bounded depth.

Python's parser alone accepts duplicate keys (the last one wins), NaN and Infinity, UTF-16, and any depth.
"""

from __future__ import annotations

import json
from typing import NoReturn, TypeAlias

from loramux.adapters.refusal import shown

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


def parse_json_object(content: bytes, *, max_depth: int) -> dict[str, JsonValue]:
    """Parse UTF-8 bytes that hold one JSON object; raises ValueError, which says what is wrong."""
    try:
        value: JsonValue = json.loads(
            content.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except RecursionError as exc:
        raise ValueError(f"nested deeper than {max_depth} levels") from exc
    except UnicodeDecodeError as exc:
        raise ValueError("not UTF-8") from exc
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if _is_deeper_than(value, max_depth):
        raise ValueError(f"nested deeper than {max_depth} levels")
    return value


def _refuse_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {shown(key)}")
        result[key] = value
    return result


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _is_deeper_than(value: JsonValue, max_depth: int) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(max_depth + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True
