"""A thousand adapters at once: `python contrib/benchmarks/many_adapters.py MODEL`.

1,000 adapters of rank 8 to 16 lie on the disk (they are made once, about 1.5 GB); 64 of them have room in host memory,
8 in slots. First the capacity: 32 clients on one adapter. Then two loads with the same arrivals, a Poisson process at
70 % of it, and the same lengths: on one adapter, and on all by Zipf's law. Afterwards a sample of the answers is asked
for again, each alone, and must be the same. Last, 8 streams run while adapters that are nowhere in memory are asked for
one after the other: how long the streams' tokens take while one is on its way, beside their median when none is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from goal_table import Goal, show_goals
from load_windows import LoadWindows
from loramux import EngineArgs, SamplingParams
from loramux.bench.driver import Answered, drive
from loramux.bench.engine_target import EngineTarget
from loramux.bench.lengths import UniformLengths
from loramux.bench.popularity import Popularity
from loramux.bench.results import Run, faults
from loramux.bench.workload import BenchRequest, Workload, with_arrivals
from loramux.lora.request import LoRARequest
from made_adapters import AdapterKind, ensure_adapters

KIND = AdapterKind(tuple(range(8, 17)))
NUM_CLIENTS = 32
NUM_WARM_UP = 8
NUM_STREAMED = 4
SHARE_OF_CAPACITY = 0.7
TIE = 1e-3
"""Log-probabilities this close may change places where other rows share the batch."""


class KeepingTarget:
    """An engine whose answers are kept, by the number of the request."""

    def __init__(self, target: EngineTarget) -> None:
        self._target = target
        self.answers: dict[int, Sequence[int]] = {}

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered:
        answered = await self._target.answer(request, on_piece)
        self.answers[request.number] = answered.token_ids
        return answered

    def counting(self) -> Callable[[], Mapping[str, object]]:
        return self._target.counting()


@dataclass(frozen=True, slots=True)
class Compared:
    """A sample of answers against the same requests alone; `num_like_base` are also what the base answers."""

    num_compared: int
    num_wrong: int
    num_ties: int
    num_like_base: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All that is measured."""

    capacity: Run
    one: Run
    many: Run
    compared: Compared
    windows: LoadWindows


def main() -> int:
    """Make the adapters, measure, and print the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a safetensors folder")
    parser.add_argument("--adapters", type=int, default=1000, help="on the disk (1000)")
    parser.add_argument("--requests", type=int, default=128, help="of each load (128)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each prompt and answer (64)")
    parser.add_argument("--sample", type=int, default=8, help="answers that are asked for again, alone (8)")
    parser.add_argument("--loads", type=int, default=16, help="adapters that arrive while streams run (16)")
    arguments = parser.parse_args()
    model = arguments.model.expanduser()
    folders = ensure_adapters(model, arguments.adapters, KIND)
    adapters = {
        name: LoRARequest(name, number, str(folder)) for number, (name, folder) in enumerate(folders.items(), 1)
    }
    args = EngineArgs(
        model=str(model),
        enable_lora=True,
        max_loras=8,
        max_cpu_loras=64,
        max_lora_rank=16,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2 * 2**30,
    )
    target = EngineTarget.start(args, adapters)
    try:
        figures = asyncio.run(measure(target, list(adapters.values()), arguments))
    finally:
        target.close()
    return _show(figures, model.name)


async def measure(target: EngineTarget, adapters: Sequence[LoRARequest], arguments: argparse.Namespace) -> Figures:
    """Do all of it, one part after the other; every request must get its tokens."""
    names = [adapter.lora_name for adapter in adapters]
    load = _workload(arguments, Popularity("zipf", 1.0))
    one = _workload(arguments, Popularity("identical"))
    vocab_size = target.vocab_size
    warm_up = one.warm_up(names, NUM_WARM_UP, vocab_size=vocab_size, run="capacity")
    await drive(target, warm_up, concurrency=NUM_CLIENTS, num_adapters=1)
    requests = one.requests(names, vocab_size=vocab_size, run="capacity")
    capacity = _good(await drive(target, requests, concurrency=NUM_CLIENTS, num_adapters=1))
    rate = SHARE_OF_CAPACITY * capacity.summary().requests_per_second
    arriving = with_arrivals(one.requests(names, vocab_size=vocab_size, run="one"), request_rate=rate, seed=0)
    on_one = _good(await drive(target, arriving, concurrency=None, num_adapters=1))
    keeping = KeepingTarget(target)
    arriving = with_arrivals(load.requests(names, vocab_size=vocab_size, run="many"), request_rate=rate, seed=0)
    on_many = _good(await drive(keeping, arriving, concurrency=None, num_adapters=len(names)))
    every = max(1, len(arriving) // arguments.sample)
    compared = await _compare(target, adapters, arriving[::every], keeping.answers)
    cold = [adapter.lora_name for adapter in adapters if target.engine.residency(adapter.lora_int_id) is None]
    windows = await LoadWindows.measure(target, names[:NUM_STREAMED], cold[-arguments.loads :])
    return Figures(capacity, on_one, on_many, compared, windows)


def _workload(arguments: argparse.Namespace, popularity: Popularity) -> Workload:
    lengths = UniformLengths(arguments.tokens, arguments.tokens)
    return Workload(
        num_requests=arguments.requests, prompt_lengths=lengths, output_lengths=lengths, popularity=popularity
    )


async def _compare(
    target: EngineTarget,
    adapters: Sequence[LoRARequest],
    sample: Sequence[BenchRequest],
    answers: Mapping[int, Sequence[int]],
) -> Compared:
    by_name = {adapter.lora_name: adapter for adapter in adapters}
    num_wrong = num_ties = num_like_base = 0
    for request in sample:
        adapter = None if request.adapter is None else by_name[request.adapter]
        alone, gaps = await _alone(target, request, adapter)
        given = list(answers[request.number])
        if given != alone:
            first = next(place for place, (a, b) in enumerate(zip(given, alone, strict=True)) if a != b)
            num_ties += gaps[first] < TIE
            num_wrong += gaps[first] >= TIE
        num_like_base += given == (await _alone(target, request, None))[0]
    return Compared(len(sample), num_wrong, num_ties, num_like_base)


async def _alone(
    target: EngineTarget, request: BenchRequest, adapter: LoRARequest | None
) -> tuple[list[int], list[float]]:
    """Return the tokens of a request that has the engine to itself, and how far each was ahead of the next one."""
    params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True, logprobs=2)
    tokens: list[int] = []
    gaps: list[float] = []
    assert not isinstance(request.prompt, str)
    prompt = list(request.prompt)
    async for output in target.engine.generate(prompt, params, f"alone-{request.number}", adapter):
        answer = output.outputs[0]
        tokens = answer.token_ids
        assert answer.logprobs is not None
        ranked = [sorted((one.logprob for one in row.values()), reverse=True) for row in answer.logprobs]
        gaps = [row[0] - row[1] for row in ranked]
    return tokens, gaps


def _good(run: Run) -> Run:
    if not run.is_good:
        raise RuntimeError(faults([run])[0])
    return run


def _show(figures: Figures, model: str) -> int:
    capacity, one, many = (run.summary() for run in (figures.capacity, figures.one, figures.many))
    compared, windows, counts = figures.compared, figures.windows, figures.many.counts
    loads = counts["adapter_loads"]
    assert isinstance(loads, dict)
    slowed = windows.p99_during / windows.median_outside
    goals = [
        Goal(f"wrong answers among {compared.num_compared} asked again alone", compared.num_wrong, 0, is_least=False),
        Goal("throughput by Zipf / on one adapter", many.output_tokens_per_second / one.output_tokens_per_second, 0.8),
        Goal("p99 between tokens during a load / median", slowed, 1.3, is_least=False),
    ]
    setting = (
        f"{model}, capacity {capacity.requests_per_second:.2f} requests/s, one adapter "
        f"{one.output_tokens_per_second:.1f} tokens/s, by Zipf {many.output_tokens_per_second:.1f} tokens/s with "
        f"{sum(loads.values())} reads of {len(loads)} adapters and {counts['num_slot_loads']} loads into slots; "
        f"{compared.num_ties} answers part at a tie, {compared.num_like_base} are the base's; between tokens "
        f"{1000 * windows.median_outside:.1f} ms median without a load, {1000 * windows.p99_outside:.1f} ms p99, "
        f"{1000 * windows.p99_during:.1f} ms p99 during one"
    )
    return show_goals(goals, setting=setting)


if __name__ == "__main__":
    sys.exit(main())
