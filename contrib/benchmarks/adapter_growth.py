"""What adapters add to a decode step: `python contrib/benchmarks/adapter_growth.py MODEL`.

Steps of 32 sequences whose rows are shared out evenly among more and more adapters, of one rank at a time on all linear
layers, with random weights. What they should add is linear: the bytes of their weights go by adapters times rank, the
arithmetic by rows times rank. Each is timed beside a step without adapters, for a machine may change its speed. Printed
is how many times as long it takes, and how much of that the plane through these two explains which fits best (R²).

The steps go to the runner directly, on KV memory that holds numbers of no meaning: what they cost does not depend on
it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from goal_table import Goal, show_goals
from loramux import EngineArgs, LLMEngine
from loramux.adapters.packed import PackedAdapter, pack
from loramux.adapters.weights import AdapterWeights, BaseModelSpec, ModuleWeights
from loramux.batch import BASE_SLOT
from peers.loramux_attention import decode_batch

NUM_ROWS = 32
NUM_CONTEXT = 16
WARM_UP_STEPS = 2
Place = tuple[int, int]  # a rank, and how many adapters


def main() -> int:
    """Time all steps and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a safetensors folder")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="in one step, at most 32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64], help="of the adapters")
    parser.add_argument("--steps", type=int, default=10, help="timed for each (10)")
    parser.add_argument("--rounds", type=int, default=3, help="of all, in another order each (3)")
    arguments = parser.parse_args()
    model = arguments.model.expanduser()
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            enable_lora=True,
            max_loras=NUM_ROWS,
            max_cpu_loras=NUM_ROWS,
            max_lora_rank=max(arguments.ranks),
            kv_cache_memory_bytes=2**29,
        )
    )
    try:
        measured = measure(engine, arguments)
    finally:
        engine.shutdown()
    ratios = {place: statistics.median(of_rounds) for place, of_rounds in measured.items()}
    show(ratios, arguments)
    goal = Goal("R² of a step's time by adapters x rank and rows x rank", explained(ratios), 0.95)
    return show_goals([goal], setting=f"{model.name}, {NUM_ROWS} rows, medians of {arguments.rounds} rounds")


def measure(engine: LLMEngine, arguments: argparse.Namespace) -> Mapping[Place, list[float]]:
    """A step's time over that of one without adapters, for every rank and number of adapters, of each round."""
    ratios: dict[Place, list[float]] = {(rank, count): [] for rank in arguments.ranks for count in arguments.adapters}
    source = random.Random(0)
    for _round in range(arguments.rounds):
        for rank in source.sample(arguments.ranks, len(arguments.ranks)):
            for slot in range(max(arguments.adapters)):
                engine.runner.place_adapter(slot, random_adapter(engine.runner.base, rank, f"{rank}-{slot}"))
            for count in source.sample(arguments.adapters, len(arguments.adapters)):
                base = _seconds_per_step(engine, 0, arguments.steps)
                ratios[rank, count].append(_seconds_per_step(engine, count, arguments.steps) / base)
    return ratios


def random_adapter(base: BaseModelSpec, rank: int, name: str) -> PackedAdapter:
    """An adapter of all linear layers, in float32."""
    modules = {
        path: ModuleWeights(
            0.01 * torch.randn(rank, target.in_features), 0.01 * torch.randn(target.out_features, rank), 1.0
        )
        for path, target in base.targets.items()
        if target.kind == "linear"
    }
    return pack(AdapterWeights(name, name, modules, 0), torch.float32, torch.device("cpu"))


def _seconds_per_step(engine: LLMEngine, num_adapters: int, num_steps: int) -> float:
    slots = [row * num_adapters // NUM_ROWS if num_adapters else BASE_SLOT for row in range(NUM_ROWS)]
    batch, rows = decode_batch(engine.runner, slots, NUM_CONTEXT)
    seconds = []
    for _step in range(WARM_UP_STEPS + num_steps):
        began = time.perf_counter()
        engine.runner.execute(batch, rows)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP_STEPS:])


def explained(ratios: Mapping[Place, float]) -> float:
    """How much of what steps take the least-squares plane explains: 1 for all of it (R²)."""
    measured = np.array(list(ratios.values()))
    known = np.array([(1.0, rank * count, rank * NUM_ROWS) for rank, count in ratios])
    weights, *_rest = np.linalg.lstsq(known, measured, rcond=None)
    unexplained = float(((measured - known @ weights) ** 2).sum())
    return 1 - unexplained / float(((measured - measured.mean()) ** 2).sum())


def show(ratios: Mapping[Place, float], arguments: argparse.Namespace) -> None:
    """Print what every step took."""
    table = Table("rank", *(f"{count} adapters" for count in arguments.adapters))
    for rank in arguments.ranks:
        table.add_row(f"{rank}", *(f"{ratios[rank, count]:.2f}" for count in arguments.adapters))
    console = Console(width=140, highlight=False)
    console.print("a step's time over that of one without adapters")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
