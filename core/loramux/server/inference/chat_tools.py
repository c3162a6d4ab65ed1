"""How one chat may use its tools: what its answers are held to, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from loramux.outputs import FinishReason
from loramux.server.inference.chat_protocol import ChatCompletionRequest, NamedToolChoice
from loramux.server.inference.tool_calls import CallFormat, ToolCallReader, arguments_schema, calls_schema
from loramux.structured_outputs import StructuredOutputsParams


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`call_format` is None where no tool can be called; `name` is set where one must be."""

    call_format: CallFormat | None = None
    name: str | None = None
    limit: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    @classmethod
    def of(cls, body: ChatCompletionRequest) -> ToolUse:
        """Read tools, tool_choice and parallel_tool_calls; and what they come to."""
        if not body.offered_tools:
            return cls()
        limit = 1 if body.parallel_tool_calls is False else None
        functions = [tool.function.model_dump(exclude_unset=True) for tool in body.tools or ()]
        match body.tool_choice:
            case "required":
                schema = calls_schema(functions, limit=limit)
                return cls("array", limit=limit, structured_outputs=StructuredOutputsParams(json=schema))
            case NamedToolChoice(function=named):
                function = next(function for function in functions if function["name"] == named.name)
                schema = arguments_schema(function)
                return cls("arguments", named.name, 1, StructuredOutputsParams(json=schema))
            case _:
                return cls("tagged", limit=limit)

    @property
    def is_free(self) -> bool:
        """Whether no tool must be called."""
        return self.structured_outputs is None

    def reader(self) -> ToolCallReader | None:
        """Make what reads one answer."""
        if self.call_format is None:
            return None
        return ToolCallReader(self.call_format, name=self.name, limit=self.limit)

    def finish_reason(self, reason: FinishReason | None, reader: ToolCallReader | None) -> str | None:
        """Tell clients that a call was made; a named one was theirs to know, and one that was cut is no whole call."""
        is_call = reader is not None and reader.has_calls and self.name is None
        return "tool_calls" if is_call and reason == "stop" else reason
