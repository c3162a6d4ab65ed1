"""The body of POST /v1/chat/completions: messages, the tools that the answer may call, and how the template is used."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramux.errors import RequestInvalid
from loramux.server.inference.protocol import MAX_LOGPROBS, GenerationRequest

MAX_MESSAGES = 2048
MAX_TOOLS = 128

Json = dict[str, object]

_TEMPLATE_FIELDS = frozenset(
    {
        "self",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
    }
)


class TextPart(BaseModel):
    """A piece of a message; only text is served."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat; fields that a chat template may read besides these are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart] | None = None

    def for_template(self) -> Json:
        """What the tokenizer makes a prompt of: role and content, and whatever else was sent."""
        content = self.content if isinstance(self.content, str | None) else [part.model_dump() for part in self.content]
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class Function(BaseModel):
    """A function as the model is told of it; `parameters` is a JSON schema."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: Json | None = None


class Tool(BaseModel):
    """Something that the answer may call; only functions are known."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """The name inside a choice of one tool."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str


class NamedToolChoice(BaseModel):
    """One tool that the answer must call."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: NamedFunction


class TokenizedChat(BaseModel):
    """What decides how messages become a prompt, for a chat and for /tokenize."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    documents: list[dict[str, str]] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestInvalid(
                "'continue_final_message' and 'add_generation_prompt' cannot both be true.",
                param="continue_final_message",
            )
        own = sorted(_TEMPLATE_FIELDS & (self.chat_template_kwargs or {}).keys())
        if own:
            raise RequestInvalid(
                f"'chat_template_kwargs' may not hold '{own[0]}', which is a field of its own or not the client's.",
                param="chat_template_kwargs",
            )
        return self

    def template_arguments(self) -> Json:
        """What the chat template is given besides the messages; tools are another matter, see `offered_tools`."""
        given: Json = dict(self.chat_template_kwargs or {})
        if self.chat_template is not None:
            given["chat_template"] = self.chat_template
        if self.documents:
            given["documents"] = self.documents
        if self.continue_final_message:
            return {**given, "continue_final_message": True, "add_generation_prompt": False}
        return {**given, "add_generation_prompt": self.add_generation_prompt is not False}

    @property
    def offered_tools(self) -> list[Json]:
        """The tools that the prompt tells of."""
        return [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]


class ChatCompletionRequest(TokenizedChat, GenerationRequest):
    """The body of POST /v1/chat/completions."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if isinstance(self.tool_choice, NamedToolChoice):
            name = self.tool_choice.function.name
            if all(tool.function.name != name for tool in self.tools or ()):
                raise RequestInvalid("'tool_choice' must name one of the tools.", param="tool_choice")
        elif self.tool_choice == "required" and not self.tools:
            raise RequestInvalid("'tool_choice' is 'required', but there are no tools.", param="tool_choice")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to give with each token; None = no log-probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            message = "when using `top_logprobs`, `logprobs` must be set to true."
            raise RequestInvalid(message, param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens of an answer; None = to the end of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def offered_tools(self) -> list[Json]:
        """The tools that the prompt tells of: none where none may be called."""
        return [] if self.tool_choice == "none" else super().offered_tools
