from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fake_engine import FakeEngine
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.server.inference import generation
from loramux.server.inference.generation import Job, fair_pause, running


@pytest.mark.parametrize(("num_answers", "seconds"), [(0, 0.0), (1, 0.0), (9, 0.0), (10, 0.002), (200, 0.04)])
def test_only_where_many_are_answered_is_each_looked_at_less_often(num_answers: int, seconds: float) -> None:
    assert fair_pause(range(num_answers)) == seconds


async def test_the_end_of_an_answer_waits_for_nobody(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_LOOKS_PER_SECOND", 1e-9)  # a second look would come after years

    reply = await client.complete(max_tokens=1, stream=True)

    assert reply.events[-1] == "[DONE]"


async def test_a_stream_that_pauses_loses_nothing(client, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "SHORTEST_PAUSE_SECONDS", 0.0)
    whole = (await client.complete()).json["choices"][0]["text"]

    events = (await client.complete(stream=True)).events[:-1]

    assert "".join(event["choices"][0]["text"] for event in events) == whole


async def test_one_prompt_is_run_by_the_task_that_reads_it(engine) -> None:
    job = Job("one", [[1]], SamplingParams(max_tokens=3), None)

    async with running(engine, job) as updates:
        num_tasks = {len(asyncio.all_tasks()) async for _ in updates}

    assert num_tasks == {1}


async def test_updates_that_are_left_unread_end_what_runs(engine) -> None:
    job = Job("one", [[1]], SamplingParams(max_tokens=3), None)

    async with running(engine, job) as updates:
        await anext(updates)

    assert (engine.num_running, engine.num_aborted) == (0, 1)


class Ahead(FakeEngine):
    """Has its outputs ready before anybody looks."""

    async def generate(self, *arguments: Any, **options: Any) -> AsyncIterator[RequestOutput]:
        for output in [output async for output in super().generate(*arguments, **options)]:
            yield output


async def test_what_came_since_the_last_look_is_counted_when_an_answer_is_left(
    engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(
        generation, "note_output", lambda _index, output: noted.append(len(output.outputs[0].token_ids))
    )
    job = Job("one", [[1]], SamplingParams(max_tokens=3), None)

    async with running(Ahead(), job) as updates:
        await anext(updates)
    assert noted == [1, 2]

    engine.hold_after = 1
    async with running(engine, job) as updates:
        await anext(updates)
    assert noted == [1, 2, 1], "what is not there yet is not waited for"
