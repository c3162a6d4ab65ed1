"""The bodies that clients send, checked field by field.

Types are strict (`"5"` is no number), unknown fields are accepted and ignored, as OpenAI's clients expect. A field that
is known elsewhere, would change the answer and is not served here is refused by name: never answered wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loramux.errors import RequestInvalid
from loramux.sampling_params import SamplingParams
from loramux.server.inference.answer_format import ResponseFormat, StructuredOutputs, answer_format
from loramux.structured_outputs import StructuredOutputsParams

MAX_ANSWERS = 16
MAX_PROMPTS = 64
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARACTERS = 256
DEFAULT_COMPLETION_TOKENS = 16
LARGEST_TOKEN_ID = 2**31 - 1

_UNSERVED: Mapping[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "early_stopping": (None, False),
    "priority": (None, 0),
    "suffix": (None, ""),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "logits_processors": (None, []),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "include_reasoning": (None, True),
    "verbosity": (None, "medium"),
    "prompt_embeds": (None,),
    "detokenize": (None, True),
    "spaces_between_special_tokens": (None, True),
    "return_tokens_as_token_ids": (None, False),
    "logprob_token_ids": (None, []),
    "echo": (None, False),  # served for completions, where it is no extra field
    "tools": (None, []),  # this one and the next: served for chats
    "tool_choice": (None, "none", "auto"),
}
"""Fields that would change the answer, each with the values that change nothing."""

BadWord = Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARACTERS)]
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
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    request_id: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestInvalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestInvalid("'prompt_logprobs' is not available when 'stream' is true.", param="prompt_logprobs")
        if self.truncate_prompt_tokens == 0:
            message = "'truncate_prompt_tokens' must be at least 1, or -1 for as many as fit; got 0."
            raise RequestInvalid(message, param="truncate_prompt_tokens")
        for name, neutral in _UNSERVED.items():
            if name in self._extra and self._extra[name] not in neutral:
                raise RequestInvalid(f"'{name}' is not supported.", param=name, code="unsupported_parameter")
        return self

    @property
    def _extra(self) -> dict[str, object]:
        return self.model_extra or {}

    @property
    def format_param(self) -> str:
        """The field that says what the answer is held to."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk of a stream counts the tokens so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        defaults: Mapping[str, Any] | None = None,
        structured_outputs: StructuredOutputsParams | None = None,
    ) -> SamplingParams:
        """Build the engine's own parameters; `defaults` stand for what the client leaves open.

        `structured_outputs` is what a forced tool call holds the answer to. Raises RequestInvalid for a value out of
        range, and for an answer that is to be two things.
        """
        fields = {name: getattr(self, name) for name in _SAMPLING_FIELDS} | {"max_tokens": max_tokens}
        given = {name: value for name, value in fields.items() if value is not None}
        settings: dict[str, Any] = {"max_tokens": None, **(defaults or {}), **given}
        own_ends = [] if self.ignore_eos else (defaults or {}).get("stop_token_ids", [])
        settings["stop_token_ids"] = [*own_ends, *(self.stop_token_ids or ())]
        asked = answer_format(self.response_format, self.structured_outputs)
        if asked is not None and structured_outputs is not None:
            raise RequestInvalid("An answer that must call a tool takes no other format.", param="tool_choice")
        return SamplingParams(
            **settings,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logit_bias=_token_bias(self.logit_bias),
            structured_outputs=structured_outputs if asked is None else asked,
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
    "allowed_token_ids",
    "bad_words",
)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions; `prompt` is a text, tokens, or a list of either."""

    prompt: object = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


def _token_bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError as exc:
        raise RequestInvalid("'logit_bias' must be keyed by token ids.", param="logit_bias") from exc
