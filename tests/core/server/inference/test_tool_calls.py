from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.server.inference.tool_calls import ToolCallReader, arguments_schema, calls_schema, whole_calls

ARGUMENTS = {"city": "Paris", "why": 'a } " brace', "days": [1, {"a": 2}]}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>'


def read(text: str, form: str = "tagged", *, cuts: list[int] | None = None, **options: object) -> tuple[str, list]:
    """Read a text in pieces; every piece of an answer may be cut anywhere."""
    reader = ToolCallReader(form, **options)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    readings = [reader.feed(text[start:end]) for start, end in itertools.pairwise(places)]
    readings.append(reader.finish())
    content = "".join(reading.content for reading in readings)
    calls = whole_calls(piece for reading in readings for piece in reading.calls)
    return content, [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_a_call_is_its_name_and_the_text_of_its_arguments() -> None:
    content, ((name, arguments),) = read(f"Let me look.\n{CALL}")

    assert (content, name) == ("Let me look.\n", "weather")
    assert json.loads(arguments) == ARGUMENTS


@given(st.lists(st.integers(min_value=0), max_size=40))
def test_it_is_the_same_however_the_text_is_cut(cuts: list[int]) -> None:
    text = f"One <tool> two{CALL}\n{CALL}<tool_cal"

    assert read(text, cuts=cuts) == read(text)


@given(st.text(alphabet='<tool_call>{}"name:argus \\/', max_size=60), st.lists(st.integers(min_value=0), max_size=20))
def test_any_text_is_read_the_same_however_it_is_cut(text: str, cuts: list[int]) -> None:
    assert read(text, cuts=cuts) == read(text)


@pytest.mark.parametrize(
    "text",
    [
        "no call at all",
        "less < than, and <tool_call",
        "<tool_call>not JSON</tool_call> and on",
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 5}',
    ],
)
def test_what_is_no_call_stays_content(text: str) -> None:
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    "block",
    [
        '{"arguments": {"city": "Paris"}, "name": "weather"}',
        '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"name": "weather", "parameters": {"city": "Paris"}}',
    ],
)
@pytest.mark.parametrize("end", ["</tool_call>", ""])
def test_a_call_may_be_written_in_other_ways(block: str, end: str) -> None:
    content, ((name, arguments),) = read(f"<tool_call>{block}{end}")

    assert (content, name, json.loads(arguments)) == ("", "weather", {"city": "Paris"})


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert read('<tool_call>{"name": "now"}</tool_call>') == ("", [("now", "{}")])


def test_a_call_that_was_cut_off_keeps_what_there_is() -> None:
    assert read('<tool_call>{"name": "weather", "arguments": {"city": "Pa') == ("", [("weather", '{"city": "Pa')])


def test_the_arguments_stream_as_they_come() -> None:
    reader = ToolCallReader("tagged")

    assert reader.feed('<tool_call>{"name": "f", "arguments": {"a').calls[0].name == "f"
    assert [piece.arguments for piece in reader.feed('": "long').calls] == ['": "long']


def test_an_array_of_calls_is_read_one_by_one() -> None:
    text = '[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]'

    assert read(text, "array") == ("", [("a", '{"x": 1}'), ("b", "{}")])


@pytest.mark.parametrize("form", ["tagged", "array"])
def test_calls_above_the_limit_are_dropped(form: str) -> None:
    text = f"{CALL}{CALL}" if form == "tagged" else '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'

    assert len(read(text, form, limit=1)[1]) == 1


def test_a_named_call_is_all_arguments() -> None:
    assert read('{"city": "Paris"}', "arguments", name="weather", cuts=[4]) == ("", [("weather", '{"city": "Paris"}')])


def test_every_call_has_an_id_of_its_own() -> None:
    reader = ToolCallReader("tagged")
    calls = whole_calls(iter(reader.feed(CALL + CALL).calls))

    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].startswith("call_") for call in calls)


def test_the_schema_of_forced_calls_takes_its_references_along() -> None:
    old = {"properties": {"c": {"$ref": "#/definitions/City"}}, "definitions": {"City": {"enum": ["Paris"]}}}
    recursive = {"properties": {"child": {"$ref": "#"}, "$ref": {"const": {"$ref": "#"}}}}
    schema = calls_schema([{"name": "f", "parameters": old}, {"name": "g", "parameters": recursive}], limit=1)

    assert schema["maxItems"] == 1
    assert [call["properties"]["name"] for call in schema["items"]["anyOf"]] == [{"const": "f"}, {"const": "g"}]
    assert [call["properties"]["arguments"]["$ref"] for call in schema["items"]["anyOf"]] == ["#/$defs/0", "#/$defs/1"]
    first, second = schema["$defs"]["0"], schema["$defs"]["1"]
    assert first["properties"]["c"]["$ref"] == "#/$defs/0/definitions/City"
    assert second["properties"]["child"]["$ref"] == "#/$defs/1"
    assert second["properties"]["$ref"] == {"const": {"$ref": "#"}}  # a property of that name, and data


def test_the_schema_of_a_named_call_is_that_of_its_arguments() -> None:
    assert arguments_schema({"name": "f"}) == {"type": "object"}
    assert arguments_schema({"name": "f", "parameters": {"required": ["a"]}}) == {"type": "object", "required": ["a"]}
