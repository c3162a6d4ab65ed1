"""POST /v1/chat/completions: the next message of a chat, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from aiohttp import web

from loramux.errors import RequestInvalid
from loramux.outputs import CompletionOutput, RequestOutput
from loramux.server.auth import principal_of
from loramux.server.body import read_body
from loramux.server.errors import Refused
from loramux.server.generation import Job, collect, growing_answers
from loramux.server.json_body import respond
from loramux.server.models import choose_model
from loramux.server.pieces import AnswerCursor, Piece, chat_logprobs, prompt_logprobs, usage
from loramux.server.prompts import chat_prompt, check_fits
from loramux.server.protocol import ChatCompletionRequest
from loramux.server.request_id import request_id_of
from loramux.server.state import SERVER, Server
from loramux.server.streaming import Event, stream_events

NO_CHAT_TEMPLATE = "no_chat_template"
"""The tokenizer's own advice, to give a template, is for callers in Python."""

Json = dict[str, object]


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer POST /v1/chat/completions."""
    server = request.app[SERVER]
    body = await read_body(request, ChatCompletionRequest)
    async with AsyncExitStack() as held:
        async with server.in_flight.admit():
            chat = await _prepare(server, body, request, held)
            if not body.stream:
                outputs = await collect(server.engine, chat.job)
                return await respond(lambda: chat.whole(outputs), outputs)
        return await stream_events(request, _events(chat), server.in_flight)


async def _prepare(server: Server, body: ChatCompletionRequest, request: web.Request, held: AsyncExitStack) -> _Chat:
    sampling_params = body.sampling_params(
        max_tokens=body.answer_tokens, logprobs=body.num_logprobs, prompt_logprobs=body.prompt_logprobs
    )
    principal = principal_of(request)
    model = await held.enter_async_context(choose_model(server, body.model, principal))
    try:
        prompt = await chat_prompt(server, body)
    except RequestInvalid as exc:
        if exc.code != NO_CHAT_TEMPLATE:
            raise
        message = "This model has no chat template: write the prompt yourself and use /v1/completions."
        raise Refused(NO_CHAT_TEMPLATE, message, param="messages") from exc
    check_fits([prompt], max_tokens=body.answer_tokens, max_model_len=server.max_model_len, param="messages")
    job = Job(request_id_of(request), [prompt.token_ids], sampling_params, model.lora_request, tenant=principal.id)
    return _Chat(server, body, job, model.name, int(time.time()))


@dataclass(frozen=True, slots=True)
class _Chat:
    """One request and the shapes of its answers."""

    server: Server
    body: ChatCompletionRequest
    job: Job
    model: str
    created: int

    def whole(self, outputs: Sequence[RequestOutput]) -> Json:
        """Build the response that is not a stream."""
        (output,) = outputs
        return {
            **self._envelope("chat.completion", [self._choice(answer) for answer in output.outputs]),
            "usage": usage(outputs),
            "prompt_logprobs": prompt_logprobs(output, self.server.vocabulary),
        }

    def chunk(self, choices: Sequence[Json]) -> Json:
        """Build one event of a stream."""
        return self._envelope("chat.completion.chunk", choices)

    def logprobs(self, piece: Piece) -> Json | None:
        """Give the log-probabilities of some tokens, when they were asked for."""
        num_top = self.body.num_logprobs
        return None if num_top is None else chat_logprobs(piece, num_top=num_top, vocabulary=self.server.vocabulary)

    def _choice(self, answer: CompletionOutput) -> Json:
        return {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self.logprobs(AnswerCursor().take(answer)),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }

    def _envelope(self, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": f"chatcmpl-{self.job.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }


async def _events(chat: _Chat) -> AsyncGenerator[Event, None]:
    cursors: dict[int, AnswerCursor] = {}
    latest: list[RequestOutput] = []
    async with aclosing(growing_answers(chat.server.engine, chat.job)) as answers:
        async for update, answer in answers:
            latest = [update.output]
            running_usage = {"usage": usage(latest)} if chat.body.wants_running_usage else {}
            if answer.index not in cursors:
                cursors[answer.index] = AnswerCursor()
                yield {**chat.chunk([_opening(answer.index)]), **running_usage}
            choice = _delta(chat, answer, cursors[answer.index].take(answer))
            if choice["delta"] or choice["logprobs"] or answer.finished:
                yield {**chat.chunk([choice]), **running_usage}
    if chat.body.wants_usage:
        yield {**chat.chunk([]), "usage": usage(latest)}


def _opening(index: int) -> Json:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _delta(chat: _Chat, answer: CompletionOutput, piece: Piece) -> Json:
    return {
        "index": answer.index,
        "delta": {"content": piece.text} if piece.text else {},
        "logprobs": chat.logprobs(piece) if piece.token_ids else None,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
