"""Requests are sent as the load says, and whatever comes of them is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from loramux.bench.driver import Answered, drive
from loramux.bench.workload import BenchRequest
from loramux.errors import EngineOverloaded, RequestFailed


class ScriptedTarget:
    """Answers at once with as many tokens as asked, or as `script` says; while `gate` is closed nobody is answered.

    `all_seen` is set when ten requests have come.
    """

    def __init__(self, script: Mapping[int, Answered | Exception] | None = None) -> None:
        self.script = script or {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.all_seen = asyncio.Event()
        self.num_under_way = 0
        self.most_under_way = 0
        self.seen: list[int] = []

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered:
        self.seen.append(request.number)
        if len(self.seen) == 10:
            self.all_seen.set()
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        try:
            await self.gate.wait()
            for _ in range(request.max_tokens):
                on_piece()
                await asyncio.sleep(0)
            answered = self.script.get(request.number, Answered(len(request.prompt), request.max_tokens))
            if isinstance(answered, Exception):
                raise answered
            return answered
        finally:
            self.num_under_way -= 1

    def counting(self) -> Callable[[], Mapping[str, object]]:
        return lambda: {"seen": len(self.seen)}


def requests(num: int, **changes: object) -> list[BenchRequest]:
    return [BenchRequest(number, None, (1, 2), 3, **changes) for number in range(num)]  # type: ignore[arg-type]


async def test_a_closed_loop_has_as_many_under_way_as_it_has_clients() -> None:
    target = ScriptedTarget()

    run = await drive(target, requests(10), concurrency=3, num_adapters=0)

    assert target.most_under_way == 3
    assert sorted(target.seen) == list(range(10))
    assert [result.number for result in run.results] == list(range(10))
    assert run.counts == {"seen": 10}


async def test_an_open_loop_sends_what_is_due_whether_or_not_anybody_answers() -> None:
    target = ScriptedTarget()
    target.gate.clear()
    driving = asyncio.create_task(drive(target, requests(10), concurrency=None, num_adapters=0))
    await target.all_seen.wait()
    target.gate.set()

    assert (await driving).is_good


async def test_times_count_from_when_a_request_was_due() -> None:
    run = await drive(ScriptedTarget(), requests(2, due_seconds=0.01), concurrency=None, num_adapters=0)

    assert [result.due_seconds for result in run.results] == pytest.approx([0.01, 0.01])
    assert run.seconds >= 0.01


async def test_a_result_has_a_time_for_every_piece() -> None:
    run = await drive(ScriptedTarget(), requests(1), concurrency=1, num_adapters=0)

    result = run.results[0]
    assert result.ttft_seconds is not None
    assert len(result.inter_token_seconds) == 2
    assert result.ttft_seconds + sum(result.inter_token_seconds) <= result.latency_seconds
    assert (result.num_prompt_tokens, result.num_asked_tokens, result.num_output_tokens) == (2, 3, 3)


async def test_whatever_goes_wrong_is_told_apart_and_hides_no_other_request() -> None:
    target = ScriptedTarget(
        {
            1: EngineOverloaded("429 too many"),
            2: RequestFailed("500 broken"),
            3: Answered(2, 1),
            4: Answered(9, 3),
            5: Answered(None, 3),
        }
    )

    run = await drive(target, requests(6), concurrency=2, num_adapters=0)

    assert [(result.outcome, result.error) for result in run.results] == [
        ("ok", None),
        ("refused", "429 too many"),
        ("failed", "RequestFailed: 500 broken"),
        ("wrong_count", "asked for 3 tokens, got 1"),
        ("wrong_count", "sent 2 tokens, 9 were counted"),
        ("ok", None),
    ]
    assert not run.is_good


async def test_a_bug_of_the_benchmark_is_no_failed_request() -> None:
    with pytest.raises(ExceptionGroup):
        await drive(ScriptedTarget({0: ZeroDivisionError()}), requests(1), concurrency=1, num_adapters=0)
