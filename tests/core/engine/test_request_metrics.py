"""An output tells when the engine did what for its request: queue, first token and token rate can be told apart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux import AsyncLLMEngine, LLMEngine, RequestMetrics, RequestOutput
from tiny_engines import engine_args, greedy, kv_bytes

MakeEngine = Callable[..., LLMEngine]

PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]


class StepClock:
    """Monotonic seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    clock = StepClock()
    monkeypatch.setattr("loramux.engine.llm_engine.time", clock)
    return clock


def test_an_output_says_when_its_request_came_was_scheduled_and_got_tokens(
    make_engine: MakeEngine, clock: StepClock
) -> None:
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=8)
    engine.add_request("before", [5, 6], greedy(1))
    clock.now = 101.0
    engine.add_request("x", PROMPT, greedy(2))
    clock.now = 102.0
    (before,) = engine.step()  # the only place is taken
    seen = []
    for now in (103.0, 104.0, 105.0):
        clock.now = now
        seen += engine.step()  # two chunks of the prompt, then a token

    assert before.metrics == RequestMetrics(100.0, 102.0, 102.0, 102.0)
    assert [output.metrics for output in seen] == [
        RequestMetrics(101.0, 103.0, 104.0, 104.0),
        RequestMetrics(101.0, 103.0, 104.0, 105.0),
    ]


def test_a_preempted_request_keeps_its_first_times(make_engine: MakeEngine, clock: StepClock) -> None:
    engine = make_engine(kv_cache_memory_bytes=kv_bytes(8))
    for name in "ab":
        engine.add_request(name, PROMPT, greedy(12))
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        clock.now += 1
        last |= {output.request_id: output for output in engine.step()}

    assert engine.scheduler.num_preemptions > 0
    metrics = last["b"].metrics
    assert metrics is not None
    assert (metrics.first_scheduled_time, metrics.first_token_time) == (101.0, 101.0)
    assert metrics.last_token_time == clock.now


def test_a_request_that_never_ran_has_no_times_but_its_arrival(make_engine: MakeEngine, clock: StepClock) -> None:
    engine = make_engine()
    engine.add_request("x", PROMPT, greedy(), arrival_time=99.5)

    output = engine.abort_request("x")

    assert output is not None
    assert output.metrics == RequestMetrics(99.5)


async def test_a_request_arrives_when_it_is_asked_for_not_when_the_engine_has_time(tiny_llama: Path) -> None:
    engine = AsyncLLMEngine.from_engine_args(engine_args(tiny_llama))
    is_free = threading.Event()

    async def last_output() -> RequestOutput:
        return [output async for output in engine.generate(PROMPT, greedy(2), "x")][-1]

    try:
        engine._post(lambda: (is_free.wait(), None)[1])
        answered = asyncio.ensure_future(last_output())
        await asyncio.sleep(0)
        asked_by = time.monotonic()
        is_free.set()
        metrics = (await answered).metrics
    finally:
        is_free.set()
        engine.shutdown()

    assert metrics is not None
    assert metrics.first_scheduled_time is not None
    assert metrics.first_token_time is not None
    assert metrics.last_token_time is not None
    assert metrics.arrival_time <= asked_by < metrics.first_scheduled_time
    assert metrics.first_scheduled_time < metrics.first_token_time < metrics.last_token_time
