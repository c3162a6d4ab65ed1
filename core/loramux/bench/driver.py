"""The driver: sends requests to a target, as they fall due or as others end, and times what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from loramux.bench.results import Outcome, RequestResult, Run
from loramux.bench.workload import BenchRequest
from loramux.errors import EngineOverloaded, LoramuxError


@dataclass(frozen=True, slots=True)
class Answered:
    """What the target says of an answer that has come to its end; `num_prompt_tokens` None: it does not say.

    `token_ids` are those of the answer, where the target shows them.
    """

    num_prompt_tokens: int | None
    num_output_tokens: int
    token_ids: Sequence[int] = ()


class Target(Protocol):
    """What answers requests.

    `answer` calls `on_piece` for every piece of the answer when it arrives. It raises EngineOverloaded where there is
    no room now, and another LoramuxError where the request failed.
    """

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered: ...

    def counting(self) -> Callable[[], Mapping[str, object]]:
        """Return what says, when it is called, what the target has done since now."""
        ...


async def drive(target: Target, requests: Sequence[BenchRequest], *, concurrency: int | None, num_adapters: int) -> Run:
    """Send all requests and wait for all answers.

    `concurrency` clients send their next request when the last one is answered; None: each request is sent when it is
    due, however many are under way, and its times count from then even if this process was late.
    """
    counts = target.counting()
    began = time.perf_counter()
    if concurrency is None:
        results = await _open_loop(target, requests, began)
    else:
        results = await _closed_loop(target, requests, began, concurrency)
    seconds = time.perf_counter() - began
    ordered = sorted(results, key=lambda result: result.number)
    return Run(num_adapters=num_adapters, seconds=seconds, results=ordered, counts=counts())


async def _open_loop(target: Target, requests: Sequence[BenchRequest], began: float) -> list[RequestResult]:
    tasks = []
    async with asyncio.TaskGroup() as group:
        for request in requests:
            due = began + request.due_seconds
            if (seconds := due - time.perf_counter()) > 0:
                await asyncio.sleep(seconds)
            tasks.append(group.create_task(_send(target, request, due=due, began=began)))
    return [task.result() for task in tasks]


async def _closed_loop(
    target: Target, requests: Sequence[BenchRequest], began: float, concurrency: int
) -> list[RequestResult]:
    async def client(remaining: Iterator[BenchRequest]) -> list[RequestResult]:
        return [await _send(target, request, due=time.perf_counter(), began=began) for request in remaining]

    shared = iter(requests)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(shared)) for _ in range(concurrency)]
    return [result for task in clients for result in task.result()]


async def _send(target: Target, request: BenchRequest, *, due: float, began: float) -> RequestResult:
    pieces: list[float] = []
    answered = Answered(None, 0)
    outcome: Outcome
    error: str | None
    try:
        answered = await target.answer(request, lambda: pieces.append(time.perf_counter()))
    except EngineOverloaded as exc:
        outcome, error = "refused", str(exc)
    except LoramuxError as exc:
        outcome, error = "failed", f"{type(exc).__name__}: {exc}"
    else:
        outcome, error = _judged(request, answered)
    ended = time.perf_counter()
    return RequestResult(
        number=request.number,
        adapter=request.adapter,
        outcome=outcome,
        due_seconds=due - began,
        ttft_seconds=pieces[0] - due if pieces else None,
        latency_seconds=ended - due,
        inter_token_seconds=[later - earlier for earlier, later in pairwise(pieces)],
        num_prompt_tokens=answered.num_prompt_tokens,
        num_asked_tokens=request.max_tokens,
        num_output_tokens=answered.num_output_tokens,
        error=error,
    )


def _judged(request: BenchRequest, answered: Answered) -> tuple[Outcome, str | None]:
    if answered.num_output_tokens != request.max_tokens:
        return "wrong_count", f"asked for {request.max_tokens} tokens, got {answered.num_output_tokens}"
    if not isinstance(request.prompt, str) and answered.num_prompt_tokens not in (None, len(request.prompt)):
        return "wrong_count", f"sent {len(request.prompt)} tokens, {answered.num_prompt_tokens} were counted"
    return "ok", None
