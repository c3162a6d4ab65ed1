"""Tool calls in the text of an answer, read while it grows.

Models trained on the Hermes format (Hermes, Qwen 2.5 and 3, and adapters tuned on it) write
`<tool_call>{"name": …, "arguments": {…}}</tool_call>`. An answer that must call a tool is held to a JSON array of such
objects, or, where the tool is named, to its arguments alone.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

CALL_TAG = "<tool_call>"
END_TAG = "</tool_call>"

CallFormat = Literal["tagged", "array", "arguments"]

_HEAD = re.compile(
    r"""\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)""", re.DOTALL
)
_BETWEEN = re.compile(r"[\s,\[\]}]*")


@dataclass(frozen=True, slots=True)
class CallPiece:
    """Some of one call: its first piece has the name and an id, later ones go on with the arguments' JSON text."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


@dataclass(slots=True)
class Reading:
    """What a piece of text turned out to be."""

    content: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class ToolCallReader:
    """Splits one answer into content and calls; text that is no call after all is content, so that nothing is lost.

    `limit` is how many calls are taken; further ones are dropped. Not thread-safe.
    """

    def __init__(self, form: CallFormat, *, name: str | None = None, limit: int | None = None) -> None:
        self._form = form
        self._limit = limit
        self._buffer = ""
        self._num_calls = 0
        self._state: Literal["content", "between", "head", "arguments", "tail"] = (
            "content" if form == "tagged" else "between"
        )
        self._scan = _ObjectScan()
        self._name = name

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return self._num_calls > 0

    def feed(self, text: str) -> Reading:
        """Take what the answer has gained."""
        reading = Reading()
        if self._form == "arguments":
            if text:
                reading.calls.append(self._piece(text))
            return reading
        self._buffer += text
        while self._advance(reading):
            pass
        self._drop_above_limit(reading)
        return reading

    def finish(self) -> Reading:
        """Say what the rest is, now that nothing follows."""
        reading = Reading()
        rest, self._buffer = self._buffer, ""
        if self._state == "content":
            reading.content = rest
        elif self._state == "head" and not self._take_whole(rest, reading):
            reading.content = (CALL_TAG if self._form == "tagged" else "") + rest
        self._drop_above_limit(reading)
        return reading

    def _advance(self, reading: Reading) -> bool:
        """Take one step through the buffer; False when more text is needed."""
        match self._state:
            case "content":
                return self._read_content(reading)
            case "between":
                self._buffer = _BETWEEN.sub("", self._buffer, count=1)
                if self._buffer:
                    self._state = "head"
                return bool(self._buffer)
            case "head":
                return self._read_head(reading)
            case "arguments":
                return self._read_arguments(reading)
            case "tail":
                return self._read_tail()

    def _read_content(self, reading: Reading) -> bool:
        before, tag, after = self._buffer.partition(CALL_TAG)
        if tag:
            reading.content += before
            self._buffer, self._state = after, "head"
            return True
        num_held = next(
            (length for length in range(len(CALL_TAG) - 1, 0, -1) if self._buffer.endswith(CALL_TAG[:length])), 0
        )
        cut = len(self._buffer) - num_held
        reading.content += self._buffer[:cut]
        self._buffer = self._buffer[cut:]
        return False

    def _read_head(self, reading: Reading) -> bool:
        head = _HEAD.match(self._buffer)
        if head is not None and (name := _text_of(head[1])) is not None:
            reading.calls.append(self._begin(name))
            self._buffer, self._state = self._buffer[head.end() :], "arguments"
            self._scan = _ObjectScan()
            return True
        if self._form == "array":
            return False
        block, tag, after = self._buffer.partition(END_TAG)
        if not tag:
            return False
        if not self._take_whole(block, reading):
            reading.content += f"{CALL_TAG}{block}{END_TAG}"
        self._buffer, self._state = after, "content"
        return True

    def _read_arguments(self, reading: Reading) -> bool:
        length = self._scan.feed(self._buffer)
        if length:
            reading.calls.append(CallPiece(self._num_calls - 1, self._buffer[:length]))
        self._buffer = self._buffer[length:]
        if not self._scan.is_closed:
            return False
        self._state = "tail" if self._form == "tagged" else "between"
        return True

    def _read_tail(self) -> bool:
        _, tag, after = self._buffer.partition(END_TAG)
        if tag:
            self._buffer, self._state = after, "content"
        return bool(tag)

    def _take_whole(self, block: str, reading: Reading) -> bool:
        """Read a call whose parts come in another order; False when it is none."""
        try:
            call = json.loads(block)
        except ValueError:
            return False
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        arguments = call.get("arguments", call.get("parameters"))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        reading.calls += [self._begin(call["name"]), CallPiece(self._num_calls - 1, text)]
        return True

    def _begin(self, name: str) -> CallPiece:
        self._num_calls += 1
        return CallPiece(self._num_calls - 1, "", name, f"call_{uuid.uuid4().hex}")

    def _piece(self, text: str) -> CallPiece:
        if self.has_calls:
            return CallPiece(0, text)
        begun = self._begin(self._name or "")
        return CallPiece(0, text, begun.name, begun.id)

    def _drop_above_limit(self, reading: Reading) -> None:
        if self._limit is not None:
            reading.calls = [piece for piece in reading.calls if piece.index < self._limit]


class _ObjectScan:
    """Finds where a JSON object that comes in pieces ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self.is_closed = False

    def feed(self, text: str) -> int:
        """Return how many characters of this piece belong to the object."""
        for position, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_text:
                self._is_escaped = character == "\\"
                self._in_text = character != '"'
            elif character == '"':
                self._in_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_closed = True
                    return position + 1
        return len(text)


def calls_schema(functions: list[dict[str, object]], *, limit: int | None) -> dict[str, object]:
    """The JSON schema of an answer that calls at least one of these functions."""
    definitions: dict[str, object] = {}
    calls: list[dict[str, object]] = []
    for index, function in enumerate(functions):
        place = f"#/$defs/{index}"
        definitions[str(index)] = _moved(arguments_schema(function), place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, object] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions}
    return schema if limit is None else {**schema, "maxItems": limit}


def arguments_schema(function: dict[str, object]) -> dict[str, object]:
    """The JSON schema of one function's arguments."""
    parameters = function.get("parameters")
    return {"type": "object", **parameters} if isinstance(parameters, dict) else {"type": "object"}


def whole_calls(pieces: Iterator[CallPiece]) -> list[dict[str, object]]:
    """Put the pieces of an answer together, in the shape of a message's `tool_calls`."""
    names: dict[int, tuple[str | None, str | None]] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        names.setdefault(piece.index, (piece.id, piece.name))
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    return [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments[index]}}
        for index, (call_id, name) in names.items()
    ]


_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords below which stands data, not schemas."""


def _moved(schema: object, place: str) -> object:
    """Let the references inside a schema, which start at its root, start at the place that it gets in a larger one."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value
        if key in _VALUES
        else place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def _text_of(literal: str) -> str | None:
    try:
        return str(json.loads(literal))
    except ValueError:
        return None
