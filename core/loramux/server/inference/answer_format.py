"""What a client may hold the text of an answer to: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from loramux.errors import RequestInvalid
from loramux.structured_outputs import StructuredOutputsParams

MAX_CHOICES_OF_TEXT = 1024
MAX_GRAMMAR_CHARACTERS = 64 * 1024

GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]


class JsonSchemaFormat(BaseModel):
    """A named schema; an answer is always held to it, so `strict` changes nothing."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    name: str | None = None
    json_schema: dict[str, object] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's way to say it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(BaseModel):
    """vLLM's way to say it; exactly one field."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    json_schema: GrammarText | dict[str, object] | None = Field(None, alias="json")
    regex: GrammarText | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES_OF_TEXT)] | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None


def answer_format(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> StructuredOutputsParams | None:
    """Bring both ways to what the engine takes; None where the text is free. Raises RequestInvalid for a conflict."""
    asked = None if structured_outputs is None else _of_structured_outputs(structured_outputs)
    if response_format is None or response_format.type == "text":
        return asked
    if asked is not None:
        raise RequestInvalid(
            "'response_format' and 'structured_outputs' both say what the answer looks like; send one of them.",
            param="structured_outputs",
        )
    if response_format.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if response_format.json_schema is None:
        raise RequestInvalid(
            "Missing required parameter: 'response_format.json_schema'.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    return StructuredOutputsParams(json=response_format.json_schema.json_schema)


async def compile_format(
    compile_it: Callable[[StructuredOutputsParams | None], Awaitable[None]],
    params: StructuredOutputsParams | None,
    *,
    param: str,
) -> None:
    """Let the engine compile a format before anything else is done; its refusal names the client's own field."""
    try:
        await compile_it(params)
    except RequestInvalid as exc:
        raise RequestInvalid(str(exc), param=param, code=exc.code) from exc


def _of_structured_outputs(asked: StructuredOutputs) -> StructuredOutputsParams | None:
    given = {
        name: value
        for name, value in (
            ("json", asked.json_schema),
            ("regex", asked.regex),
            ("choice", asked.choice),
            ("grammar", asked.grammar),
            ("json_object", asked.json_object or None),
        )
        if value is not None
    }
    if len(given) > 1:
        raise RequestInvalid(
            f"'structured_outputs' takes one of json, regex, choice, grammar, json_object; got {', '.join(given)}.",
            param="structured_outputs",
        )
    return StructuredOutputsParams(**given) if given else None  # type: ignore[arg-type]  # each checked above
