"""From the bytes of a request to a checked pydantic model; every way to get it wrong has its own answer."""

from __future__ import annotations

import asyncio
import json
from typing import NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from loramux.errors import RequestInvalid
from loramux.server.errors import Refused, shown

BODY_TIMEOUT_SECONDS = 15
DEEPEST_JSON = 32

_ABOVE_MAXIMUM = frozenset({"less_than", "less_than_equal", "too_long", "string_too_long"})

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: web.Request, schema: type[Body]) -> Body:
    """Read a JSON request; raises Refused or RequestInvalid, which say what is wrong and where."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("unsupported_encoding", "Compressed request bodies are not accepted.")
    if request.content_type != "application/json":
        raise Refused("unsupported_media_type", "Content-Type must be application/json.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            raw = await request.read()
    except TimeoutError as exc:
        raise Refused("body_timeout", f"The request body took longer than {BODY_TIMEOUT_SECONDS} seconds.") from exc
    return _checked(parse_json_object(raw), schema)


def parse_json_object(raw: bytes) -> dict[str, object]:
    """Parse strictly: one object, no repeated key, no NaN, no infinity, no deep nesting."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object_without_repeats, parse_constant=_refuse_constant)
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


def _checked(value: dict[str, object], schema: type[Body]) -> Body:
    try:
        return schema.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise _refusal(first["type"], first["msg"], param) from exc


def _refusal(kind: str, message: str, param: str | None) -> RequestInvalid:
    param = None if param is None else shown(param)
    name = param or "body"
    if kind == "missing":
        return RequestInvalid(f"Missing required parameter: '{name}'.", param=param, code="missing_required_parameter")
    code = "value_above_maximum" if kind in _ABOVE_MAXIMUM else "invalid_value"
    message = message.removeprefix("Value error, ")
    return RequestInvalid(f"Invalid value for '{name}': {message}.", param=param, code=code)


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _not_json("an object repeats a key")
    return value


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
