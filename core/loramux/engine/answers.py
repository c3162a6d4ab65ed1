"""RequestGroup and Answer: what the caller asked for, and its n answers as they grow."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from loramux.adapters.lease import Lease
from loramux.engine.request import Request
from loramux.errors import LoramuxError, RequestInvalid
from loramux.lora.request import LoRARequest
from loramux.model.sampler import SampledToken, SamplingRow
from loramux.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.text.detokenizer import IncrementalDetokenizer
from loramux.text.grammar import Grammar
from loramux.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """One of the n sequences of a request: its tokens, its text, and why it ended."""

    index: int
    request: Request
    sampling: SamplingRow
    detokenizer: IncrementalDetokenizer
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    text: str = ""

    def take(self, token: SampledToken, tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
        """Add a token: to the sequence, its text and its log-probabilities; decide whether it ends the answer.

        Raises RequestInvalid when the grammar cannot go on from here.
        """
        params = self.request.params
        grammar = self.sampling.grammar
        self.request.append(token.token_id)
        if self.logprobs is not None and token.logprob is not None:
            self.cumulative_logprob += token.logprob
            self.logprobs.append(logprob_table(token, tokenizer))
        num_output = len(self.request.output_token_ids)
        if grammar is not None and not grammar.take(token.token_id):
            raise self.no_token_left()
        is_stop_token = num_output >= params.min_tokens and (
            (token.token_id in eos_token_ids and not params.ignore_eos)
            or token.token_id in (params.stop_token_ids or ())
        )
        if grammar is not None and token.token_id in eos_token_ids:
            is_stop_token = True  # the sampler offers the end early only where nothing else is left
        if not is_stop_token or params.include_stop_str_in_output:
            self.detokenizer.append(token.token_id)
            self.text = self.detokenizer.text
            if self.detokenizer.stop_string is not None:
                self.finish("stop", self.detokenizer.stop_string)
                return
        if is_stop_token:
            is_named = token.token_id in (params.stop_token_ids or ())
            self.finish("stop", token.token_id if is_named else None)
        elif grammar is not None and grammar.is_complete:
            self.finish("stop")
        elif num_output == params.max_tokens or self.request.num_tokens >= self.request.max_total_tokens:
            self.finish("length")

    def no_token_left(self) -> RequestInvalid:
        """Say why nothing can follow: what the caller asked for contradicts itself, or is too much."""
        reason = None if self.sampling.grammar is None else self.sampling.grammar.error
        if reason is not None:
            return RequestInvalid(f"structured_outputs cannot go on: {reason}", param="structured_outputs")
        return RequestInvalid(
            "no token is left that allowed_token_ids, bad_words, min_tokens and structured_outputs allow"
        )

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End the answer; text that was held back becomes final."""
        self.finish_reason = reason
        self.stop_reason = stop_reason
        self.text = self.detokenizer.finish()
        if reason == "length" and self.detokenizer.stop_string is not None:  # found in the text held back
            self.finish_reason, self.stop_reason = "stop", self.detokenizer.stop_string

    def abort(self) -> None:
        """End the answer with the text that was safe to show; nothing here can fail."""
        self.finish_reason = "abort"

    def output(self, lora_request: LoRARequest | None) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=list(self.request.output_token_ids),
            cumulative_logprob=self.cumulative_logprob if self.logprobs is not None else None,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            lora_request=lora_request,
        )


@dataclass(slots=True)
class RequestGroup:
    """One request of a caller, from its arrival to the end of its last answer."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    lora_request: LoRARequest | None
    arrival_time: float
    cache_salt: str | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    tenant: str | None = None
    lease: Lease | None = None
    answers: list[Answer] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    error: LoramuxError | None = None

    @property
    def is_finished(self) -> bool:
        return self.error is not None or all(answer.finish_reason is not None for answer in self.answers)

    def start(self, tokenizer: Tokenizer, *, max_total_tokens: int, seeds: Sequence[int], eos: frozenset[int]) -> None:
        """Make the n sequences; the adapter's weights are at hand by now."""
        digest = None if self.lease is None else self.lease.adapter.digest
        without_prompt_logprobs = replace(self.params, prompt_logprobs=None) if len(seeds) > 1 else self.params
        for index, seed in enumerate(seeds):
            request_id = f"{index}#{self.request_id}"  # never the id of another request's sequence
            params = self.params if index == 0 else without_prompt_logprobs
            request = Request(
                request_id,
                self.prompt_token_ids,
                params,
                digest=digest,
                cache_salt=self.cache_salt,
                max_total_tokens=max_total_tokens,
                tenant=self.tenant,
            )
            self.answers.append(
                Answer(
                    index=index,
                    request=request,
                    sampling=SamplingRow(
                        params,
                        request.prompt_token_ids,
                        request.output_token_ids,
                        random.Random(seed),
                        eos,
                        bad_words=self.bad_words,
                        grammar=None if self.grammar is None else self.grammar.matcher(),
                    ),
                    detokenizer=IncrementalDetokenizer.for_request(tokenizer, self.prompt_token_ids, params),
                    logprobs=None if self.params.logprobs is None else [],
                )
            )

    def take_prompt_logprobs(self, tokens: Iterable[SampledToken | None], tokenizer: Tokenizer) -> None:
        """Add the log-probabilities of the next prompt tokens; the first token has none."""
        if self.prompt_logprobs is None:
            self.prompt_logprobs = [None]
        self.prompt_logprobs += [None if token is None else logprob_table(token, tokenizer) for token in tokens]

    def log_fields(self) -> dict[str, str]:
        """Which request a line of the log is about."""
        adapter = "-" if self.lora_request is None else self.lora_request.lora_name
        return {"request_id": self.request_id, "adapter": adapter}

    def note_scheduled(self, now: float) -> None:
        """Record that a step computes some of this request."""
        if self.first_scheduled_time is None:
            self.first_scheduled_time = now

    def note_token(self, now: float) -> None:
        """Record that one of the answers has got a token."""
        if self.first_token_time is None:
            self.first_token_time = now
        self.last_token_time = now

    def output(self) -> RequestOutput:
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=list(self.prompt_token_ids),
            prompt_logprobs=self._shown_prompt_logprobs(),
            outputs=[answer.output(self.lora_request) for answer in self.answers] or self._aborted(),
            finished=self.is_finished,
            lora_request=self.lora_request,
            num_cached_tokens=self.answers[0].request.num_cached_tokens if self.answers else 0,
            error=self.error,
            metrics=RequestMetrics(
                self.arrival_time, self.first_scheduled_time, self.first_token_time, self.last_token_time
            ),
        )

    def _shown_prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        if self.params.prompt_logprobs is None:
            return None
        return list(self.prompt_logprobs or [None])

    def _aborted(self) -> list[CompletionOutput]:
        """What a request that never started shows for its answers."""
        return [
            CompletionOutput(index, "", [], finish_reason="abort", lora_request=self.lora_request)
            for index in range(self.params.n)
        ]


def logprob_table(token: SampledToken, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The chosen token first, then the likeliest ones by rank."""
    assert token.logprob is not None
    table = {token.token_id: Logprob(token.logprob, token.rank, tokenizer.token_text(token.token_id))}
    for other in token.top:
        table.setdefault(other.token_id, Logprob(other.logprob, other.rank, tokenizer.token_text(other.token_id)))
    return table
