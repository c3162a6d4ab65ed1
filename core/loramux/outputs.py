"""What a request gives back: its text, tokens and log-probabilities so far.

Each output is cumulative: the latest one says everything that the earlier ones said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loramux.errors import LoramuxError
from loramux.lora.request import LoRARequest

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """The natural logarithm of a token's probability under the model itself, before penalties and temperature.

    `rank` counts from 1 for the most likely token. `decoded_token` is the token's own text, None without a tokenizer.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the `n` answers to a request.

    `text` is always a prefix of the final text; characters that are not yet decided are held back. `stop_reason` is
    the stop string or the stop token id that ended it, None when the end-of-sequence token did. `logprobs` has one
    dict per output token, the chosen token first, then the alternatives by rank.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None

    @property
    def finished(self) -> bool:
        """Whether no more tokens will follow."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When the engine did what for one request, in seconds of the monotonic clock; None for what has not happened.

    Arrival to first_scheduled_time is the queue, an adapter's loading included; arrival to first_token_time is the time
    to first token. With n answers the first token of any of them counts, and the last one of any so far.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The state of one request. `error` is set when it ended because something failed rather than stopped.

    `prompt` is None when the request gave token ids. `prompt_logprobs` has one entry per prompt token; the first is
    None, because nothing comes before it. `num_cached_tokens` counts prompt tokens taken from the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    lora_request: LoRARequest | None = None
    num_cached_tokens: int = 0
    error: LoramuxError | None = None
    metrics: RequestMetrics | None = None
