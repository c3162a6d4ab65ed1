from __future__ import annotations

from typing import Any

import pytest

from loramux.errors import RequestInvalid
from loramux.server.inference.protocol import CompletionRequest
from loramux.structured_outputs import StructuredOutputsParams

NAMED = "json_schema"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def held_to(**fields: Any) -> StructuredOutputsParams | None:
    body = CompletionRequest.model_validate({"prompt": "hi", **fields})
    return body.sampling_params(max_tokens=1, logprobs=None, prompt_logprobs=None).structured_outputs


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputsParams(json_object=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            StructuredOutputsParams(json=SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, StructuredOutputsParams(json=SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutputsParams(regex="a+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, StructuredOutputsParams(choice=["yes", "no"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, StructuredOutputsParams(grammar='start: "a"')),
        ({"structured_outputs": {"json_object": True}}, StructuredOutputsParams(json_object=True)),
    ],
)
def test_both_ways_to_say_it_reach_the_engine(fields: dict[str, object], expected: object) -> None:
    assert held_to(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_two_formats_or_half_of_one_are_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        held_to(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
    ],
)
async def test_what_is_no_format_is_refused_by_its_place(client, fields: dict[str, object], param: str) -> None:
    reply = await client.complete(**fields)

    assert (reply.status, reply.error["param"]) == (400, param)


async def test_a_format_that_cannot_be_compiled_is_refused_before_the_answer_begins(client, engine) -> None:
    reply = await client.complete(structured_outputs={"regex": "("}, stream=True)

    assert (reply.status, reply.error["param"]) == (400, "structured_outputs")
    assert engine.seen == []
