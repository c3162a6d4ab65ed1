"""What the first request of an adapter waits for: `python contrib/benchmarks/cold_adapter.py MODEL`.

Adapters of rank 16 on all linear layers lie on the local disk, and not in the system's cache of files. Each is asked
for twice, alone: the first request finds it on the disk, the second one in its slot. Printed is the median, over the
adapters, of how much later the first token of the first request came.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from goal_table import Goal, show_goals
from loramux import EngineArgs
from loramux.bench.adapter_choice import AdapterChoice, lora_requests
from loramux.bench.driver import drive
from loramux.bench.engine_target import EngineTarget
from loramux.bench.lengths import UniformLengths
from loramux.bench.popularity import Popularity
from loramux.bench.results import RequestResult, faults
from loramux.bench.workload import Workload
from made_adapters import ALL_LINEAR, AdapterKind, ensure_adapters

KIND = AdapterKind((16,), ALL_LINEAR)


def main() -> int:
    """Measure and print the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a safetensors folder")
    parser.add_argument("--adapters", type=int, default=16, help="that are asked for (16)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens of each prompt (64)")
    arguments = parser.parse_args()
    model = arguments.model.expanduser()
    folders = ensure_adapters(model, arguments.adapters, KIND)
    args = EngineArgs(model=str(model), enable_lora=True, enable_prefix_caching=False, kv_cache_memory_bytes=2 * 2**30)
    choices = [AdapterChoice(name, str(folder)) for name, folder in folders.items()]
    target = EngineTarget.start(args, lora_requests(choices))
    try:
        _forget(folders.values())
        results = asyncio.run(measure(target, list(folders), arguments.prompt_tokens))
    finally:
        target.close()
    cold, warm = ([_milliseconds(result) for result in results[start::2]] for start in (0, 1))
    later = statistics.median(first - second for first, second in zip(cold, warm, strict=True))
    goal = Goal("ms that the first token comes later where the adapter is cold", later, 50, is_least=False)
    medians = f"median TTFT cold {statistics.median(cold):.1f} ms, warm {statistics.median(warm):.1f} ms"
    return show_goals([goal], setting=f"{model.name}, {arguments.adapters} adapters of rank 16, {medians}")


async def measure(target: EngineTarget, names: Sequence[str], prompt_tokens: int) -> Sequence[RequestResult]:
    """Ask for every adapter twice, one request at a time; the results are in that order."""
    load = Workload(
        num_requests=2 * len(names),
        prompt_lengths=UniformLengths(prompt_tokens, prompt_tokens),
        output_lengths=UniformLengths(4, 4),
        popularity=Popularity("distinct"),
    )
    vocab_size = target.vocab_size
    warm_up = load.requests([None], vocab_size=vocab_size, run="warm-up")[:4]
    await drive(target, warm_up, concurrency=1, num_adapters=0)
    requests = load.requests([None], vocab_size=vocab_size, run="cold")
    twice = [replace(request, adapter=names[number // 2]) for number, request in enumerate(requests)]
    run = await drive(target, twice, concurrency=1, num_adapters=len(names))
    if not run.is_good:
        raise RuntimeError(faults([run])[0])
    return run.results


def _forget(folders: Iterable[Path]) -> None:
    """Let the system drop what it keeps of the files."""
    for folder in folders:
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # only what is on the disk is dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _milliseconds(result: RequestResult) -> float:
    assert result.ttft_seconds is not None
    return 1000 * result.ttft_seconds


if __name__ == "__main__":
    sys.exit(main())
