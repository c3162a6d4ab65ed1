"""Plan: what a benchmark is to do, whoever answers; and doing it, one run after the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loramux.bench.adapter_choice import AdapterChoice
from loramux.bench.driver import Target, drive
from loramux.bench.replay import Replay
from loramux.bench.results import Run, faults
from loramux.bench.workload import BenchRequest, Workload, with_arrivals
from loramux.errors import RequestFailed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`sweep` has, for every run, how many of the choices it draws from; 0 is the base model alone.

    A closed loop has `concurrency` clients. Else requests arrive by themselves: `request_rate` per second, or, where
    that is None too, when the log says.
    """

    load: Workload | Replay
    choices: tuple[AdapterChoice, ...] = ()
    sweep: tuple[int, ...] = (0,)
    concurrency: int | None = None
    request_rate: float | None = math.inf
    num_warmup: int = 1

    async def run_all(self, target: Target, *, vocab_size: int) -> list[Run]:
        """Send the load once for every place of the sweep. Raises RequestFailed where a warm-up request fails."""
        return [await self._run(target, num_choices, vocab_size) for num_choices in self.sweep]

    async def _run(self, target: Target, num_choices: int, vocab_size: int) -> Run:
        names = [choice.name for choice in self.choices[:num_choices]] or [None]
        requests, warm_up = self._requests(names, vocab_size)
        offered = self.load.adapters if isinstance(self.load, Replay) else names
        num_adapters = sum(name is not None for name in offered)
        logger.info("run num_adapters=%d num_requests=%d", num_adapters, len(requests))
        if warm_up:
            run = await drive(target, warm_up, concurrency=self.concurrency, num_adapters=num_adapters)
            if not run.is_good:
                raise RequestFailed(f"warm-up: {faults([run])[0]}")
        return await drive(target, requests, concurrency=self.concurrency, num_adapters=num_adapters)

    def _requests(
        self, names: Sequence[str | None], vocab_size: int
    ) -> tuple[Sequence[BenchRequest], Sequence[BenchRequest]]:
        """Return the requests of a run and those that warm up for it."""
        load = self.load
        if isinstance(load, Replay):
            requests, warm_up = load.requests(vocab_size), load.warm_up(self.num_warmup, vocab_size)
        else:
            run = str(len(names))
            requests = load.requests(names, vocab_size=vocab_size, run=run)
            warm_up = load.warm_up(names, self.num_warmup, vocab_size=vocab_size, run=run)
        if self.request_rate is not None and self.concurrency is None:
            requests = with_arrivals(requests, request_rate=self.request_rate, seed=load.seed)
        return requests, warm_up
