"""Run one request's prompts in the engine at once and hand their outputs over as they grow.

Outputs are cumulative, so the latest one of a prompt replaces those that were not taken yet: a client that reads
slowly gets fewer, larger pieces and holds up neither the engine nor memory. Leaving the context, for whatever reason,
aborts what still runs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence, Sized
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from loramux.errors import EngineDead, EngineOverloaded
from loramux.lora.request import LoRARequest
from loramux.outputs import CompletionOutput, RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.server.access.auth import principal_of
from loramux.server.inference.model_choice import ModelChoice
from loramux.server.inference.prompts import Prompt
from loramux.server.inference.protocol import GenerationRequest
from loramux.server.observing.exchange import note_output
from loramux.server.request_id import request_id_of
from loramux.server.state import SERVER, Engine

MAX_LOOKS_PER_SECOND = 5_000
"""Each costs the event loop some 35 µs for a stream, and the engine thread waits for the interpreter meanwhile."""

SHORTEST_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Job:
    """All that the engine is asked for one HTTP request; every prompt has `sampling_params.n` answers.

    `created` is in Unix seconds. `tenant` is whose share of the queue it takes; prompts of another `cache_salt` are
    never reused for it. `pause_seconds` says for how long an answer that goes on is left alone after each look.
    """

    request_id: str
    prompts: Sequence[list[int]]
    sampling_params: SamplingParams
    lora_request: LoRARequest | None
    created: int = 0
    tenant: str | None = None
    cache_salt: str | None = None
    pause_seconds: Callable[[], float] = lambda: 0.0


def new_job(
    request: web.Request,
    body: GenerationRequest,
    prompts: Sequence[Prompt],
    sampling_params: SamplingParams,
    model: ModelChoice,
) -> Job:
    """Bring together what a checked request asks of the engine; raises EngineOverloaded when too much waits there."""
    server, tenant = request.app[SERVER], principal_of(request).id
    if (num_waiting := server.engine.num_waiting) >= server.max_waiting:
        raise EngineOverloaded(f"{num_waiting} sequences are waiting already")
    return Job(
        request_id_of(request),
        [prompt.token_ids for prompt in prompts],
        sampling_params,
        model.lora_request,
        created=int(time.time()),
        tenant=tenant,
        cache_salt=_salt_of(tenant, body.cache_salt),
        pause_seconds=partial(fair_pause, server.in_flight),
    )


def fair_pause(in_flight: Sized) -> float:
    """Let all answers together have MAX_LOOKS_PER_SECOND; tokens that come meanwhile go out together."""
    seconds = len(in_flight) / MAX_LOOKS_PER_SECOND
    return seconds if seconds >= SHORTEST_PAUSE_SECONDS else 0.0


def _salt_of(tenant: str | None, salt: str | None) -> str | None:
    """Keep the cached prefixes of each key apart: the salt that a client sends can only narrow who shares them."""
    return salt if tenant is None else f"{tenant} {salt or ''}"


@dataclass(frozen=True, slots=True)
class Update:
    """The state of one prompt."""

    prompt_index: int
    output: RequestOutput


class _Mailbox:
    """The latest output of each prompt that was not taken yet, and how the prompts ended."""

    def __init__(self, num_prompts: int) -> None:
        self._latest: dict[int, Update] = {}
        self._num_running = num_prompts
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, update: Update) -> None:
        self._latest[update.prompt_index] = update
        self._changed.set()

    def finish(self, failure: Exception | None) -> None:
        self._num_running -= 1
        self._failure = self._failure or failure
        self._changed.set()

    async def updates(self) -> AsyncIterator[Update]:
        while self._num_running or self._latest:
            await self._changed.wait()
            self._changed.clear()
            latest, self._latest = self._latest, {}
            for update in latest.values():
                yield update
            if self._failure is not None:
                raise self._failure


@asynccontextmanager
async def running(engine: Engine, job: Job) -> AsyncIterator[AsyncIterator[Update]]:
    """Start the job; iterate what this gives for its updates. The first failure of a prompt is raised there."""
    if len(job.prompts) == 1:  # no task beside the reader's own, which every token would have to wake as well
        async with aclosing(_updates(engine, job, 0)) as updates:
            yield updates
        return
    mailbox = _Mailbox(len(job.prompts))
    tasks = [asyncio.create_task(_run_prompt(engine, job, index, mailbox)) for index in range(len(job.prompts))]
    try:
        yield mailbox.updates()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Growing:
    """The answers of a job that still grow; one that has ended comes once and no more."""

    def __init__(self) -> None:
        self._ended: set[tuple[int, int]] = set()

    def of(self, update: Update) -> Iterator[CompletionOutput]:
        """Give each answer that an update may have news of."""
        for answer in update.output.outputs:
            place = (update.prompt_index, answer.index)
            if place not in self._ended:
                if answer.finished:
                    self._ended.add(place)
                yield answer


async def collect(engine: Engine, job: Job) -> list[RequestOutput]:
    """Run the job to its end; the final output of each prompt, in their order."""
    final: dict[int, RequestOutput] = {}
    async with running(engine, job) as updates:
        async for update in updates:
            final[update.prompt_index] = update.output
    return [final[index] for index in range(len(job.prompts))]


async def _run_prompt(engine: Engine, job: Job, index: int, mailbox: _Mailbox) -> None:
    failure: Exception | None = None
    try:
        async with aclosing(_updates(engine, job, index)) as updates:
            async for update in updates:
                mailbox.put(update)
    except Exception as exc:  # handed over to the request's own task, which raises it
        failure = exc
    mailbox.finish(failure)


async def _updates(engine: Engine, job: Job, index: int) -> AsyncGenerator[Update, None]:
    """Run one prompt, and leave its answer alone for a while after each look."""
    request_id = f"{job.request_id}-{uuid.uuid4().hex[:8]}-{index}"  # a client may send one id twice
    clock = asyncio.get_running_loop().time
    outputs = engine.generate(
        job.prompts[index],
        job.sampling_params,
        request_id,
        job.lora_request,
        tenant=job.tenant,
        cache_salt=job.cache_salt,
    )
    try:
        looked_at = clock()
        async for output in outputs:
            note_output(index, output)
            _raise_if_broken(output)
            yield Update(index, output)
            if not output.finished:  # the engine's own steps may have taken longer than the pause
                rest_seconds = job.pause_seconds() - (clock() - looked_at)
                if rest_seconds > 0:
                    await asyncio.sleep(rest_seconds)
            looked_at = clock()
    finally:
        await _note_unread(index, outputs)
        if isinstance(outputs, AsyncGenerator):
            await outputs.aclose()


async def _note_unread(index: int, outputs: AsyncIterator[RequestOutput]) -> None:
    """Note what an answer has come to that is left: whoever takes nothing has not looked at it for a while."""
    with suppress(Exception):  # it has ended, or there is nothing new
        async with asyncio.timeout(0):
            note_output(index, await anext(outputs))


def _raise_if_broken(output: RequestOutput) -> None:
    if output.error is not None:
        raise output.error
    if output.finished and any(answer.finish_reason == "abort" for answer in output.outputs):
        raise EngineDead("the request was aborted")
