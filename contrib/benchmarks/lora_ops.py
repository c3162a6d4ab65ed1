"""Time `lora_group` on CPU beside the base GEMM of the same projections: `python contrib/benchmarks/lora_ops.py`.

One line per group of projections and batch, and one for a whole layer: microseconds per call of the op and of the base
GEMM, and the op's share of it. The calls go through as many layers as a model has, so that weights come from memory as
they do in a step. Each figure is the median of the rounds, in which op and base take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

import torch

from loramux_kernels import Segments, SlotWeights, lora_group
from loramux_kernels.packed import PackedWeight, pack_weight, packed_linear

GROUPS: dict[str, tuple[int, tuple[int, ...]]] = {  # of SmolLM2-135M
    "q, k, v": (576, (576, 192, 192)),
    "o": (576, (576,)),
    "gate, up": (576, (1536, 1536)),
    "down": (1536, (576,)),
}
BATCHES: dict[str, tuple[int, ...]] = {
    "8 x 1": (1,) * 8,
    "8 x 4": (4,) * 8,
    "32 x 1": (1,) * 32,
    "skewed": (17, 4, 3, 3, 2, 1, 1, 1),
    "1 x 32": (32,),
    "8 x 64": (64,) * 8,
    "1 x 512": (512,),
}


@dataclass(frozen=True)
class Layer:
    """One layer's weights of a group: of the base, and of every slot of every member."""

    base: PackedWeight
    members: tuple[tuple[SlotWeights, int], ...]

    @classmethod
    def of(cls, group: tuple[int, tuple[int, ...]], ranks: Sequence[int]) -> Layer:
        in_features, widths = group
        members = []
        for first, out_features in zip(accumulate(widths, initial=0), widths, strict=False):
            weights = SlotWeights(len(ranks), in_features, out_features, torch.float32, "cpu", max_rank=max(ranks))
            for slot, rank in enumerate(ranks):
                weights.set(slot, torch.randn(rank, in_features), torch.randn(rank, out_features).t())
            members.append((weights, first))
        return cls(pack_weight(torch.randn(sum(widths), in_features)), tuple(members))


def seconds_of(call: Callable[[Layer], object], layers: Sequence[Layer]) -> float:
    """One call per layer."""
    began = time.perf_counter()
    for layer in layers:
        call(layer)
    return (time.perf_counter() - began) / len(layers)


def measure(layers: Sequence[Layer], lengths: tuple[int, ...], rounds: int) -> tuple[float, float]:
    """Microseconds of (the op, the base product)."""
    starts = (0, *accumulate(lengths[:-1]))
    num_rows, base_weight = sum(lengths), layers[0].base
    x, y = torch.randn(num_rows, base_weight.panels.shape[1]), torch.zeros(num_rows, base_weight.out_features)
    slots = tuple(range(len(lengths)))
    op: list[float] = []
    base: list[float] = []
    for _ in range(rounds + 1):
        segments = Segments(slots, starts, lengths, num_rows)  # planned anew, as in every step
        op.append(seconds_of(lambda layer: lora_group(x, layer.members, segments, y), layers))  # noqa: B023 - called here
        base.append(seconds_of(lambda layer: packed_linear(x, layer.base), layers))
    return median(op[1:]) * 1e6, median(base[1:]) * 1e6


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64], help="of the slots, in turn")
    parser.add_argument("--batches", nargs="+", default=list(BATCHES), choices=list(BATCHES), metavar="BATCH")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    write = sys.stdout.write
    write(f"{torch.__version__}, {arguments.threads} thread(s), float32, ranks {arguments.ranks}\n")
    write("| segments x rows | group | op us | base us | op / base |\n| --- | --- | ---: | ---: | ---: |\n")
    with torch.inference_mode():
        totals = {name: [0.0, 0.0] for name in arguments.batches}
        for group, shape in GROUPS.items():
            most = max(len(BATCHES[name]) for name in arguments.batches)
            ranks = [arguments.ranks[slot % len(arguments.ranks)] for slot in range(most)]
            layers = [Layer.of(shape, ranks) for _ in range(arguments.layers)]
            for name in arguments.batches:
                op, base = measure(layers, BATCHES[name], arguments.rounds)
                totals[name] = [totals[name][0] + op, totals[name][1] + base]
                write(f"| {name} | {group} | {op:.0f} | {base:.0f} | {op / base:.2f} |\n")
        for name, (op, base) in totals.items():
            write(f"| {name} | a layer | {op:.0f} | {base:.0f} | {op / base:.2f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
