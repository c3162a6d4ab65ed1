"""POST /v1/chat/completions: the next message of a chat, whole or as a stream."""

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
from loramux.server.errors import Refused
from loramux.server.inference.adapter_defaults import AdapterDefaults
from loramux.server.inference.answering import answer_request, settle
from loramux.server.inference.chat_protocol import ChatCompletionRequest
from loramux.server.inference.chat_tools import ToolUse
from loramux.server.inference.generation import Growing, Job, new_job, running
from loramux.server.inference.model_choice import choose_model
from loramux.server.inference.pieces import AnswerCursor, Piece, chat_logprobs, prompt_logprobs, usage
from loramux.server.inference.prompts import Cut, Prompt, chat_prompt, check_fits
from loramux.server.inference.streaming import Event
from loramux.server.inference.tool_calls import CallPiece, whole_calls
from loramux.server.state import SERVER, Server

NO_CHAT_TEMPLATE = "no_chat_template"
"""The tokenizer's own advice, to give a template, is for callers in Python."""

Json = dict[str, object]


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer POST /v1/chat/completions."""
    return await answer_request(request, await read_body(request, ChatCompletionRequest), _prepared, _events)


@asynccontextmanager
async def _prepared(request: web.Request, body: ChatCompletionRequest) -> AsyncIterator[_Chat]:
    """Check everything, find the model and hold it, and encode the messages."""
    server = request.app[SERVER]
    tools = ToolUse.of(body)
    _sampling_params(body, tools)  # what is wrong by itself is refused before a model is looked for
    async with choose_model(request, body.model) as model:
        sampling_params, defaults = await settle(
            server,
            model.served,
            partial(_sampling_params, body, tools),
            format_param=body.format_param if tools.is_free else "tools",
        )
        num_answer = 1 if sampling_params.max_tokens is None else sampling_params.max_tokens
        cut = Cut.of(body, server.max_model_len - num_answer)
        prompt = await _prompt(server, body, defaults, cut)
        check_fits(
            [prompt], max_tokens=sampling_params.max_tokens, max_model_len=server.max_model_len, param="messages"
        )
        yield _Chat(server, body, new_job(request, body, [prompt], sampling_params, model), model.name, tools)


def _sampling_params(
    body: ChatCompletionRequest, tools: ToolUse, defaults: AdapterDefaults | None = None
) -> SamplingParams:
    return body.sampling_params(
        max_tokens=body.answer_tokens,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        defaults={
            **({"skip_special_tokens": False} if tools.call_format == "tagged" else {}),
            **({} if defaults is None else defaults.sampling),
        },
        structured_outputs=tools.structured_outputs,
    )


async def _prompt(server: Server, body: ChatCompletionRequest, defaults: AdapterDefaults, cut: Cut) -> Prompt:
    context = server.max_model_len if cut.num_tokens is None else None
    try:
        token_ids = await chat_prompt(server, body, chat_template=defaults.chat_template, context=context)
    except RequestInvalid as exc:
        if exc.code != NO_CHAT_TEMPLATE:
            raise
        message = "This model has no chat template: write the prompt yourself and use /v1/completions."
        raise Refused(NO_CHAT_TEMPLATE, message, param="messages") from exc
    return Prompt(cut.apply(token_ids))


@dataclass(frozen=True, slots=True)
class _Chat:
    """One request and the shapes of its answers."""

    server: Server
    body: ChatCompletionRequest
    job: Job
    model: str
    tools: ToolUse

    def whole(self, outputs: Sequence[RequestOutput]) -> Json:
        """Build the response that is not a stream."""
        (output,) = outputs
        whole = {
            **self._envelope("chat.completion", [self._choice(answer) for answer in output.outputs]),
            "usage": usage(outputs),
            "prompt_logprobs": prompt_logprobs(output, self.server.vocabulary),
        }
        return {**whole, "prompt_token_ids": output.prompt_token_ids} if self.body.return_token_ids else whole

    def chunk(self, choices: Sequence[Json]) -> Json:
        """Build one event of a stream."""
        return self._envelope("chat.completion.chunk", choices)

    def logprobs(self, piece: Piece) -> Json | None:
        """Give the log-probabilities of some tokens, when they were asked for."""
        num_top = self.body.num_logprobs
        return None if num_top is None else chat_logprobs(piece, num_top=num_top, vocabulary=self.server.vocabulary)

    def _choice(self, answer: CompletionOutput) -> Json:
        reader = self.tools.reader()
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if reader is not None:
            readings = [reader.feed(answer.text), reader.finish()]
            content = "".join(reading.content for reading in readings)
            calls = whole_calls(piece for reading in readings for piece in reading.calls)
            if calls:
                message |= {"content": content.strip() or None, "tool_calls": calls}
        choice: Json = {
            "index": answer.index,
            "message": message,
            "logprobs": self.logprobs(AnswerCursor().take(answer)),
            "finish_reason": self.tools.finish_reason(answer.finish_reason, reader),
            "stop_reason": answer.stop_reason,
        }
        return {**choice, "token_ids": answer.token_ids} if self.body.return_token_ids else choice

    def _envelope(self, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": f"chatcmpl-{self.job.request_id}",
            "object": kind,
            "created": self.job.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": None,
        }


class _ChoiceStream:
    """Turns the growing answer of one choice into the deltas that the client has not seen."""

    def __init__(self, chat: _Chat) -> None:
        self._chat = chat
        self._cursor = AnswerCursor()
        self._reader = chat.tools.reader()

    def choice(self, answer: CompletionOutput) -> Json:
        """Give what is new of the choice."""
        piece = self._cursor.take(answer)
        choice = {
            "index": answer.index,
            "delta": self._delta(piece.text, finished=answer.finished),
            "logprobs": self._chat.logprobs(piece) if piece.token_ids else None,
            "finish_reason": self._chat.tools.finish_reason(answer.finish_reason, self._reader),
            "stop_reason": answer.stop_reason,
        }
        return {**choice, "token_ids": list(piece.token_ids)} if self._chat.body.return_token_ids else choice

    def _delta(self, text: str, *, finished: bool) -> Json:
        if self._reader is None:
            return {"content": text} if text else {}
        readings = [self._reader.feed(text), *([self._reader.finish()] if finished else [])]
        content = "".join(reading.content for reading in readings)
        calls = [_call_delta(piece) for reading in readings for piece in reading.calls]
        return {**({"content": content} if content else {}), **({"tool_calls": calls} if calls else {})}


async def _events(request: web.Request, body: ChatCompletionRequest) -> AsyncGenerator[Event, None]:
    choices: dict[int, _ChoiceStream] = {}
    latest: list[RequestOutput] = []
    growing = Growing()
    async with _prepared(request, body) as chat, running(chat.server.engine, chat.job) as updates:
        async for update in updates:
            latest = [update.output]
            running_usage = {"usage": usage(latest)} if body.wants_running_usage else {}
            for answer in growing.of(update):
                if answer.index not in choices:
                    opening = chat.chunk([_opening(answer.index)])
                    if body.return_token_ids and not choices:
                        opening["prompt_token_ids"] = update.output.prompt_token_ids
                    choices[answer.index] = _ChoiceStream(chat)
                    yield {**opening, **running_usage}
                choice = choices[answer.index].choice(answer)
                if choice["delta"] or choice["logprobs"] or choice.get("token_ids") or answer.finished:
                    yield {**chat.chunk([choice]), **running_usage}
        if body.wants_usage:
            yield {**chat.chunk([]), "usage": usage(latest)}


def _opening(index: int) -> Json:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call_delta(piece: CallPiece) -> Json:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
