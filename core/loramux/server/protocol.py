"""The bodies that clients send, checked field by field.

Types are strict (`"5"` is no number), unknown fields are accepted and ignored, as OpenAI's clients expect. A field that
is known elsewhere, would change the answer and is not served here is refused by name: never answered wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramux.errors import RequestInvalid
from loramux.sampling_params import SamplingParams

MAX_ANSWERS = 16
MAX_PROMPTS = 64
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_MESSAGES = 2048
DEFAULT_COMPLETION_TOKENS = 16
LARGEST_TOKEN_ID = 2**31 - 1

_UNSERVED: Mapping[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "early_stopping": (None, False),
    "priority": (None, 0),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None, {}),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "logits_processors": (None, []),
    "documents": (None, []),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "include_reasoning": (None, True),
    "verbosity": (None, "medium"),
    "continue_final_message": (None, False),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "truncate_prompt_tokens": (None,),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "prompt_embeds": (None,),
    "detokenize": (None, True),
    "spaces_between_special_tokens": (None, True),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "logprob_token_ids": (None, []),
    "echo": (None, False),  # this one and the next are served for completions, and are no extra fields there
    "add_special_tokens": (None, False),
}
"""Fields that would change the answer, each with the values that change nothing."""

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, le=LARGEST_TOKEN_ID)]


class StreamOptions(BaseModel):
    """What a stream says besides the answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """What completions and chat completions have in common; None always means "the default"."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    skip_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestInvalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestInvalid("'prompt_logprobs' is not available when 'stream' is true.", param="prompt_logprobs")
        for name, neutral in _UNSERVED.items():
            if name in self._extra and self._extra[name] not in neutral:
                raise RequestInvalid(f"'{name}' is not supported.", param=name, code="unsupported_parameter")
        return self

    @property
    def _extra(self) -> dict[str, object]:
        return self.model_extra or {}

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk of a stream counts the tokens so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_params(
        self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        """Build the engine's own parameters; raises RequestInvalid for a value out of range."""
        given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        return SamplingParams(
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=_token_bias(self.logit_bias),
        )


_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "skip_special_tokens",
)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions; `prompt` is a text, tokens, or a list of either."""

    prompt: object = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None


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

    def for_template(self) -> dict[str, object]:
        """What the tokenizer makes a prompt of: role and content, and whatever else was sent."""
        content = self.content if isinstance(self.content, str | None) else [part.model_dump() for part in self.content]
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None

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


class LoadAdapterRequest(BaseModel):
    """The body of POST /v1/load_lora_adapter; without a path the resolvers are asked."""

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: str | None = None
    lora_path: str | None = None
    base_model_name: str | None = None
    load_inplace: bool | None = None


class WhichAdapterRequest(BaseModel):
    """The body of POST /v1/unload_lora_adapter, /v1/pin_lora_adapter and /v1/unpin_lora_adapter.

    One field is enough; `id` takes what `/v1/models` shows as such, or the number.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: str | None = None
    lora_int_id: int | None = None
    id: str | int | None = None


class MoveAliasRequest(BaseModel):
    """The body of POST /v1/move_lora_alias; `target` null removes the alias.

    With `expected_target` the alias must stand for that now; null means that it must not exist yet.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    alias: Annotated[str, Field(min_length=1)]
    target: str | None
    expected_target: str | None = None


def _token_bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError as exc:
        raise RequestInvalid("'logit_bias' must be keyed by token ids.", param="logit_bias") from exc
