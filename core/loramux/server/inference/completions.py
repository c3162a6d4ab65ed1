"""POST /v1/completions: texts continued, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from loramux.errors import RequestInvalid
from loramux.outputs import CompletionOutput, RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.server.body import read_body
from loramux.server.inference.adapter_defaults import AdapterDefaults
from loramux.server.inference.answering import answer_request, settle
from loramux.server.inference.generation import Growing, Job, new_job, running
from loramux.server.inference.model_choice import choose_model
from loramux.server.inference.pieces import (
    AnswerCursor,
    Piece,
    completion_logprobs,
    num_characters,
    prompt_logprobs,
    usage,
)
from loramux.server.inference.prompts import Prompt, check_fits, completion_prompts, parse_prompts
from loramux.server.inference.protocol import DEFAULT_COMPLETION_TOKENS, MAX_CHOICES, CompletionRequest
from loramux.server.inference.streaming import Event
from loramux.server.state import SERVER, Server


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Answer POST /v1/completions."""
    return await answer_request(request, await read_body(request, CompletionRequest), _prepared, _events)


@asynccontextmanager
async def _prepared(request: web.Request, body: CompletionRequest) -> AsyncIterator[_Completion]:
    """Check everything, find the model and hold it, and encode the prompts."""
    server = request.app[SERVER]
    num_answers = _sampling_params(body).n  # what is wrong by itself is refused before a model is looked for
    values = parse_prompts(body.prompt)
    if len(values) * num_answers > MAX_CHOICES:
        message = f"'n' times the number of prompts must be at most {MAX_CHOICES}."
        raise RequestInvalid(message, param="n", code="value_above_maximum")
    async with choose_model(request, body.model) as model:
        sampling_params, _ = await settle(
            server, model.served, partial(_sampling_params, body), format_param=body.format_param
        )
        max_tokens = sampling_params.max_tokens  # 1 for an echo alone: scoring, too, needs room for a token
        num_answer = 1 if max_tokens is None else max_tokens
        prompts = await completion_prompts(server, body, values, num_answer=num_answer)
        check_fits(prompts, max_tokens=max_tokens, max_model_len=server.max_model_len, param="prompt")
        yield _Completion(server, body, prompts, new_job(request, body, prompts, sampling_params, model), model.name)


def _sampling_params(body: CompletionRequest, defaults: AdapterDefaults | None = None) -> SamplingParams:
    """What the engine computes; an echo alone still needs one step, whose token is dropped."""
    return body.sampling_params(
        max_tokens=1 if _is_echo_only(body) else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_larger(body.prompt_logprobs, body.logprobs if body.echo else None),
        defaults={"max_tokens": DEFAULT_COMPLETION_TOKENS, **({} if defaults is None else defaults.sampling)},
    )


def _is_echo_only(body: CompletionRequest) -> bool:
    return bool(body.echo) and body.max_tokens == 0


def _larger(one: int | None, other: int | None) -> int | None:
    given = [value for value in (one, other) if value is not None]
    return max(given) if given else None


@dataclass(frozen=True, slots=True)
class _Completion:
    """One request and the shapes of its answers."""

    server: Server
    body: CompletionRequest
    prompts: Sequence[Prompt]
    job: Job
    model: str

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, object]:
        """Build the response that is not a stream."""
        choices = [
            {
                **_ChoiceWriter(self, prompt_index, answer.index).choice(output, answer),
                "prompt_logprobs": self._prompt_logprobs(output) if answer.index == 0 else None,
            }
            for prompt_index, output in enumerate(outputs)
            for answer in output.outputs
        ]
        return {**self.envelope(choices), "usage": self.usage(outputs)}

    def _prompt_logprobs(self, output: RequestOutput) -> object:
        """All answers to a prompt share them, so they are sent with the first."""
        return None if self.body.prompt_logprobs is None else prompt_logprobs(output, self.server.vocabulary)

    def envelope(self, choices: Sequence[object]) -> dict[str, object]:
        """What a response and every chunk of a stream share."""
        return {
            "id": f"cmpl-{self.job.request_id}",
            "object": "text_completion",
            "created": self.job.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }

    def usage(self, outputs: Sequence[RequestOutput]) -> dict[str, object]:
        """Count the tokens of these prompts."""
        num_dropped = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        return usage(outputs, num_uncounted=num_dropped if _is_echo_only(self.body) else 0)


class _ChoiceWriter:
    """Turns the growing answer of one choice into what the client has not seen of it."""

    def __init__(self, completion: _Completion, prompt_index: int, answer_index: int) -> None:
        self._completion = completion
        self._prompt = completion.prompts[prompt_index]
        self._index = prompt_index * completion.job.sampling_params.n + answer_index
        self._cursor = AnswerCursor()
        self._offset = 0
        self._is_first = True
        self._is_echo_only = _is_echo_only(completion.body)

    def choice(self, output: RequestOutput, answer: CompletionOutput) -> dict[str, object]:
        """Give the next part of the choice; the first one starts with the prompt where an echo was asked for."""
        body = self._completion.body
        piece, is_first = Piece("") if self._is_echo_only else self._cursor.take(answer), self._is_first
        self._is_first = False
        with_prompt = piece
        if body.echo and is_first:
            with_prompt = Piece(self._prompt.text, output.prompt_token_ids, output.prompt_logprobs or ()) + piece
        choice = {
            "index": self._index,
            "text": with_prompt.text,
            "logprobs": self._logprobs(with_prompt),
            "finish_reason": "length" if self._is_echo_only else answer.finish_reason,
            "stop_reason": None if self._is_echo_only else answer.stop_reason,
        }
        if body.return_token_ids:
            choice["token_ids"] = list(piece.token_ids)
            choice["prompt_token_ids"] = output.prompt_token_ids if is_first else None
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, list[object]] | None:
        num_top = self._completion.body.logprobs
        if num_top is None:
            return None
        vocabulary = self._completion.server.vocabulary
        logprobs = completion_logprobs(piece, num_top=num_top, offset=self._offset, vocabulary=vocabulary)
        self._offset += num_characters(piece, vocabulary)
        return logprobs


async def _events(request: web.Request, body: CompletionRequest) -> AsyncGenerator[Event, None]:
    writers: dict[tuple[int, int], _ChoiceWriter] = {}
    latest: dict[int, RequestOutput] = {}
    growing = Growing()
    async with _prepared(request, body) as completion, running(completion.server.engine, completion.job) as updates:
        async for update in updates:
            latest[update.prompt_index] = update.output
            for answer in growing.of(update):
                place = (update.prompt_index, answer.index)
                if place not in writers:
                    writers[place] = _ChoiceWriter(completion, *place)
                choice = writers[place].choice(update.output, answer)
                if _says_something(choice):
                    chunk = completion.envelope([choice])
                    if body.wants_running_usage:
                        chunk["usage"] = completion.usage([update.output])
                    yield chunk
        if body.wants_usage:
            yield {**completion.envelope([]), "usage": completion.usage([*latest.values()])}


def _says_something(choice: dict[str, object]) -> bool:
    logprobs = choice["logprobs"]
    has_tokens = bool(choice.get("token_ids")) or (isinstance(logprobs, dict) and bool(logprobs["tokens"]))
    return bool(choice["text"]) or has_tokens or choice["finish_reason"] is not None
