"""Time `lora_linear` on CPU beside the base GEMM of the same module: `python contrib/benchmarks/lora_ops.py`.

One line per shape and batch: microseconds per call of the plain two products per segment, of the op, of the base GEMM;
then the op's share of the base GEMM, and what it costs in a step of 210 wrapped modules. Each figure is the best of 15
blocks, the three calls taking turns: it leaves out what other load on the machine costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from loramux_kernels import Segments, SlotWeights, lora_linear

MODULES_PER_STEP = 210  # 30 layers of 7 wrapped modules: SmolLM2-135M
SHAPES = ((576, 576), (576, 1536), (1536, 576), (1536, 1536))
LENGTHS: dict[str, tuple[int, ...]] = {
    "8 x 1": (1,) * 8,
    "8 x 4": (4,) * 8,
    "32 x 1": (1,) * 32,
    "skewed": (9, 3, 2, 1, 1, 1, 1, 1),
    "1 x 8": (8,),
    "1 x 256": (256,),
}


def best_microseconds(
    calls: Sequence[Callable[[], object]], *, rounds: int = 15, seconds: float = 0.004
) -> list[float]:
    """The fastest block of each call; the calls take turns, so that other load meets all of them."""
    counts = [max(3, int(seconds / max(block_seconds(call, 5), 1e-6))) for call in calls]
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, (call, count) in enumerate(zip(calls, counts, strict=True)):
            best[i] = min(best[i], block_seconds(call, count) * 1e6)
    return best


def block_seconds(call: Callable[[], object], count: int) -> float:
    """The mean of one block of calls."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def measure(features: tuple[int, int], rank: int, lengths: tuple[int, ...], dtype: torch.dtype) -> list[float]:
    """Microseconds of (two products per segment, the op, the base GEMM)."""
    in_features, out_features = features
    weights = SlotWeights(len(lengths), in_features, out_features, dtype, "cpu")
    for slot in range(len(lengths)):
        weights.set(slot, torch.randn(rank, in_features).to(dtype), torch.randn(out_features, rank).to(dtype))
    starts = (0, *accumulate(lengths[:-1]))
    segments = Segments(tuple(range(len(lengths))), starts, lengths, sum(lengths))
    x, y = torch.randn(sum(lengths), in_features).to(dtype), torch.randn(sum(lengths), out_features).to(dtype)
    base = torch.randn(out_features, in_features).to(dtype)
    pairs = [(weights.a(slot), weights.b(slot)) for slot in range(len(lengths))]

    def plain() -> None:
        for (a, b), rows, out in zip(pairs, torch.split(x, list(lengths)), torch.split(y, list(lengths)), strict=True):
            assert a is not None
            assert b is not None
            out.add_(rows.mm(a.t()).mm(b.t()))

    calls = (plain, lambda: lora_linear(x, weights, segments, y), lambda: torch.nn.functional.linear(x, base))
    return best_microseconds(calls)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    sys.stdout.write(f"{torch.__version__}, {arguments.threads} thread(s), {arguments.dtype}; segments x rows\n")
    sys.stdout.write("| in -> out | rank | segments | plain us | op us | base us | op / base | ms per step |\n")
    sys.stdout.write("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n")
    with torch.inference_mode():
        for features in SHAPES:
            for rank in arguments.ranks:
                for name, lengths in LENGTHS.items():
                    plain, op, base = measure(features, rank, lengths, dtype)
                    sys.stdout.write(
                        f"| {features[0]} -> {features[1]} | {rank} | {name} | {plain:.1f} | {op:.1f} | {base:.1f} "
                        f"| {op / base:.2f} | {op * MODULES_PER_STEP / 1000:.1f} |\n"
                    )


if __name__ == "__main__":
    main()
