"""StructuredOutputsParams: the one shape that an answer is held to: JSON, a regex, a list of choices or a grammar."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux.errors import RequestInvalid

MAX_GRAMMAR_NBYTES = 65536
"""Schema, regex, grammar, or all choices together, as UTF-8."""

KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """Say what every answer must match; exactly one field is set, and the names are vLLM's.

    `json` is a JSON schema, as an object or as text, and reads back as text. `regex` must match the whole answer, in
    the syntax of Rust's regex crate. `choice` lists the possible answers and reads back as a tuple. `grammar` is a
    context-free grammar in llguidance's Lark syntax with a rule `start`. `json_object` asks for any JSON object.
    Raises RequestInvalid; whether a schema, regex or grammar makes sense is found when it is compiled.
    """

    json: str | Mapping[str, object] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        """Check the one field that is set, and bring it to text or to a tuple."""
        if self.json_object not in (None, False, True):
            raise _refusal("json_object", self.json_object, "true or false")
        given = [kind for kind in KINDS if getattr(self, kind) is not None and getattr(self, kind) is not False]
        if len(given) != 1:
            raise RequestInvalid(
                f"structured_outputs must set exactly one of {', '.join(KINDS)}; got {', '.join(given) or 'none'}",
                param="structured_outputs",
            )
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        for field in ("regex", "grammar"):
            if getattr(self, field) is not None:
                _check_text(field, getattr(self, field))
        if self.choice is not None:
            object.__setattr__(self, "choice", _checked_choice(self.choice))

    @property
    def kind(self) -> str:
        """Which of KINDS is set."""
        return next(kind for kind in KINDS if getattr(self, kind))


def _refusal(field: str, value: object, accepted: str) -> RequestInvalid:
    shown = reprlib.repr(value)  # short, however long or deep the value is
    return RequestInvalid(f"structured_outputs.{field} must be {accepted}, got {shown}", param="structured_outputs")


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise _refusal(field, text, "a non-empty string")
    _check_size(field, text)


def _check_size(field: str, text: str) -> None:
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError as exc:
        raise _refusal(field, text, "valid Unicode text") from exc
    if nbytes > MAX_GRAMMAR_NBYTES:
        raise RequestInvalid(
            f"structured_outputs.{field} must have at most {MAX_GRAMMAR_NBYTES} bytes, got {nbytes}",
            param="structured_outputs",
            code="value_above_maximum",
        )


def _schema_text(schema: object) -> str:
    if isinstance(schema, Mapping):
        try:
            schema = json.dumps(dict(schema), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise _refusal("json", schema, "a JSON schema of plain values that is not nested too deeply") from exc
    if not isinstance(schema, str) or not schema:
        raise _refusal("json", schema, "a JSON schema as an object or as text")
    _check_size("json", schema)
    return schema


def _checked_choice(choice: object) -> tuple[str, ...]:
    if not isinstance(choice, list | tuple) or not choice or not all(isinstance(text, str) and text for text in choice):
        raise _refusal("choice", choice, "a list of at least one non-empty string")
    _check_size("choice", "".join(choice))
    return tuple(choice)
