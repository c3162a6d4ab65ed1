"""LoadWindows: how streams fare while adapters are on their way from the disk into a slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loramux.bench.engine_target import EngineTarget
from loramux.bench.results import Percentiles
from loramux.bench.workload import BenchRequest, random_prompt

NUM_STREAMS = 8
PROMPT_TOKENS = 16
TOKENS_BETWEEN_LOADS = 6

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LoadWindows:
    """Seconds between tokens of the streams: inside the windows, from a request for a cold adapter to its answer."""

    p99_during: float
    median_outside: float
    p99_outside: float

    @classmethod
    async def measure(cls, target: EngineTarget, names: Sequence[str], cold: Sequence[str]) -> LoadWindows:
        """Run the streams on adapters of some names, while the cold ones are asked for, one by one.

        Those must be in neither host memory nor a slot. Their requests have one token, so that hardly anything but the
        load is added to the streams' steps.
        """
        streams = _Streams(target, names)
        running = asyncio.create_task(streams.run())
        running.add_done_callback(streams.end)
        try:
            await streams.wait_for_tokens(TOKENS_BETWEEN_LOADS)
            streams.forget()  # their prompts, and adapters of their own that were loaded first
            windows = []
            for number, name in enumerate(cold):
                began = time.perf_counter()
                request = BenchRequest(number, name, random_prompt(1, target.vocab_size, name), 1)
                await target.answer(request, lambda: None)
                windows.append((began, time.perf_counter()))
                await streams.wait_for_tokens(TOKENS_BETWEEN_LOADS)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return _figures(streams.gaps(), windows)


class _Streams:
    """Answers that are longer than the measurement; their tokens are noted when they come."""

    def __init__(self, target: EngineTarget, names: Sequence[str]) -> None:
        self._target = target
        self._names = names
        self._pieces: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
        self._came = asyncio.Event()
        self._ended: asyncio.Task[None] | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(NUM_STREAMS):
                group.create_task(self._stream(number))

    async def wait_for_tokens(self, num_tokens: int) -> None:
        """Return when each stream has got so many more."""
        due = [len(pieces) + num_tokens for pieces in self._pieces]
        while any(len(pieces) < number for pieces, number in zip(self._pieces, due, strict=True)):
            if self._ended is not None:
                self._ended.result()  # raises what ended them, if anything did
                raise RuntimeError("the streams ended before the last adapter was loaded")
            self._came.clear()
            await self._came.wait()

    def end(self, task: asyncio.Task[None]) -> None:
        """Wake whoever waits for tokens that will not come."""
        self._ended = task
        self._came.set()

    def forget(self) -> None:
        """Count from now on."""
        for pieces in self._pieces:
            pieces.clear()

    def gaps(self) -> list[Interval]:
        return [gap for pieces in self._pieces for gap in pairwise(pieces)]

    async def _stream(self, number: int) -> None:
        longest = self._target.engine.max_model_len - PROMPT_TOKENS
        prompt = random_prompt(PROMPT_TOKENS, self._target.vocab_size, f"stream-{number}")
        request = BenchRequest(number, self._names[number % len(self._names)], prompt, longest)

        def note() -> None:
            self._pieces[number].append(time.perf_counter())
            self._came.set()

        await self._target.answer(request, note)


def _figures(gaps: Sequence[Interval], windows: Sequence[Interval]) -> LoadWindows:
    during: list[float] = []
    outside: list[float] = []
    for start, end in gaps:
        is_inside = any(start < window_end and window_start < end for window_start, window_end in windows)
        (during if is_inside else outside).append(end - start)
    inside_figures, outside_figures = Percentiles.of(during), Percentiles.of(outside)
    assert inside_figures is not None
    assert outside_figures is not None
    return LoadWindows(inside_figures.p99, outside_figures.p50, outside_figures.p99)
