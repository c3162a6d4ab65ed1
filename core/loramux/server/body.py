"""From the bytes of a request to a checked pydantic model; every way to get it wrong has its own answer."""

from __future__ import annotations

import asyncio
import json
import math
from typing import NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from loramux.errors import RequestInvalid
from loramux.server.errors import LONGEST_SHOWN_VALUE, Refused, shown
from loramux.server.state import SERVER

BODY_TIMEOUT_SECONDS = 15
DEEPEST_JSON = 32

_ABOVE_MAXIMUM = frozenset({"less_than", "less_than_equal", "too_long", "string_too_long"})

_TELLING = frozenset({"too_long", "too_short"})
"""Errors whose message says by itself what was there."""

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: web.Request, schema: type[Body]) -> Body:
    """Read a JSON request; raises Refused or RequestInvalid, which say what is wrong and where."""
    return checked(await read_object(request), schema)


async def read_object(request: web.Request) -> dict[str, object]:
    """Read a JSON object, whatever it holds; raises Refused or RequestInvalid."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("unsupported_encoding", "Compressed request bodies are not accepted.")
    if request.content_type != "application/json":
        raise Refused("unsupported_media_type", "Content-Type must be application/json.")
    async with request.app[SERVER].in_flight.receive():
        return parse_json_object(await _read(request))


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await request.read()
    except TimeoutError as exc:
        raise Refused("body_timeout", f"The request body took longer than {BODY_TIMEOUT_SECONDS} seconds.") from exc


def parse_json_object(raw: bytes) -> dict[str, object]:
    """Parse strictly: one object, no repeated key, no NaN, no infinity, no deep nesting."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object_without_repeats, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\ud" in text.lower():  # an escape can write half a surrogate pair, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as exc:
        raise _not_json(f"{exc.msg.lower()} at line {exc.lineno}, column {exc.colno}") from exc
    except RecursionError as exc:
        raise _not_json(f"nested deeper than {DEEPEST_JSON} levels") from exc
    except ValueError as exc:  # bytes that are no Unicode, a lone surrogate, or an integer of thousands of digits
        raise _not_json("it cannot be decoded") from exc
    if not isinstance(value, dict):
        raise _not_json("it must be an object")
    if _is_deeper_than(value, DEEPEST_JSON):
        raise _not_json(f"nested deeper than {DEEPEST_JSON} levels")
    return value


def checked(value: dict[str, object], schema: type[Body]) -> Body:
    """Check an object field by field; raises RequestInvalid for the first that is wrong."""
    try:
        return schema.model_validate(value)
    except ValidationError as exc:
        raise _refusal(exc, value) from exc


def _refusal(invalid: ValidationError, body: dict[str, object]) -> RequestInvalid:
    """Answer with the first error; where a field may be one of several things, with what looked furthest into it."""
    errors = invalid.errors(include_url=False, include_context=False)
    of_field = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    paths = [_path(error["loc"], body, is_missing=error["type"] == "missing") for error in of_field]
    path = max(paths, key=len)
    there = [error for error, other in zip(of_field, paths, strict=True) if other == path]
    of_right_type = [error for error in there if not error["type"].endswith("_type")]
    error, *others = of_right_type[:1] or there
    param = shown(".".join(path)) or None
    name = param or "body"
    if error["type"] == "missing":
        return RequestInvalid(f"Missing required parameter: '{name}'.", param=param, code="missing_required_parameter")
    code = "value_above_maximum" if error["type"] in _ABOVE_MAXIMUM else "invalid_value"
    message = " or ".join([error["msg"], *(other["msg"].removeprefix("Input should be ") for other in others)])
    got = "" if error["type"] in _TELLING else f", got {_named(error['input'])}"
    return RequestInvalid(f"Invalid value for '{name}': {message}{got}.", param=param, code=code)


def _path(location: tuple[int | str, ...], body: dict[str, object], *, is_missing: bool) -> tuple[str, ...]:
    """Leave out of pydantic's location what is not in the body: the names of the types that a union tried."""
    path: list[str] = []
    current: object = body
    for position, part in enumerate(location):
        is_index = isinstance(current, list) and isinstance(part, int)
        if is_index or (isinstance(current, dict) and part in current):
            current = current[part]  # type: ignore[index]  # one of the two, as just asked
        elif not (is_missing and position == len(location) - 1):
            continue
        path.append(str(part))
    return tuple(path)


def _named(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case str():
            return shown(json.dumps(value[: LONGEST_SHOWN_VALUE + 1], ensure_ascii=False))
        case _:
            return shown(json.dumps(value))


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _not_json("an object repeats a key")
    return value


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _not_json(f"{shown(literal)} is beyond what a number can hold")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json(f"{name} is not a JSON number")


def _is_deeper_than(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return True


def _not_json(reason: str) -> RequestInvalid:
    return RequestInvalid(f"The request body is not valid JSON: {reason}.", code="invalid_json")
