"""StructuredOutputsParams accepts one shape and refuses the rest by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loramux import StructuredOutputsParams
from loramux.errors import RequestInvalid

DEEP: dict[str, object] = {}
for _ in range(5000):
    DEEP = {"a": DEEP}
CIRCLE: dict[str, object] = {}
CIRCLE["a"] = CIRCLE


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ({}, "none"),
        ({"json_object": False}, "none"),
        ({"regex": "a", "choice": ["b"]}, "regex, choice"),
        ({"json": {}, "json_object": True}, "json, json_object"),
    ],
)
def test_exactly_one_shape_is_given(shape: dict[str, Any], got: str) -> None:
    message = f"^structured_outputs must set exactly one of json, regex, choice, grammar, json_object; got {got}$"
    with pytest.raises(RequestInvalid, match=message) as refused:
        StructuredOutputsParams(**shape)
    assert refused.value.param == "structured_outputs"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("json", value) for value in ("", 3, [], {"a": object()}, {"a": float("nan")}, DEEP, CIRCLE, "\ud800")],
        *[("regex", value) for value in ("", 3, ["a"], "\ud800")],
        *[("grammar", value) for value in ("", 3, "\ud800")],
        *[("choice", value) for value in ("yes", [], [""], [1], {"a"}, ["\ud800"])],
        *[("json_object", value) for value in ("yes", 2)],
    ],
)
def test_a_refusal_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(RequestInvalid, match=rf"^structured_outputs\.{field} must be .+, got ") as refused:
        StructuredOutputsParams(**{field: value})
    assert refused.value.param == "structured_outputs"
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("json", json.dumps({"const": "a" * 65536})),
        ("json", {"const": "a" * 65536}),
        ("regex", "é" * 32769),
        ("grammar", "a" * 65537),
        ("choice", ["a"] * 65537),
    ],
)
def test_what_is_too_long_is_refused_with_its_size(field: str, value: Any) -> None:
    with pytest.raises(RequestInvalid, match=rf"^structured_outputs\.{field} must have at most 65536 bytes, got "):
        StructuredOutputsParams(**{field: value})


def test_what_is_just_short_enough_is_taken() -> None:
    assert StructuredOutputsParams(regex="a" * 65536).kind == "regex"


def test_collections_read_back_as_what_cannot_change() -> None:
    schema: dict[str, object] = {"type": "string"}
    choices = ["yes", "no"]
    of_schema, of_choices = StructuredOutputsParams(json=schema), StructuredOutputsParams(choice=choices)
    schema["type"] = "integer"
    choices.append("maybe")
    assert of_schema.json == '{"type": "string"}'
    assert of_choices.choice == ("yes", "no")


def test_equal_shapes_are_equal_keys() -> None:
    one, same = (StructuredOutputsParams(json={"type": "string"}) for _ in range(2))
    assert {one: 1}[same] == 1
    assert one != StructuredOutputsParams(json={"type": "integer"})
