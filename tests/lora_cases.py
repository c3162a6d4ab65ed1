"""Batches of mixed adapters, the float64 truth, and the one table of tolerances for every kernel test."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import torch

from loramux_kernels import Segments, SlotWeights

# (relative, absolute) against the float64 loop, for values of order 1. float32: sums of up to 2,000 products;
# 16-bit: one rounding of the result (float16 2^-11, bfloat16 2^-8 of values up to 8).
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 4e-3),
    torch.bfloat16: (8e-3, 3e-2),
}
RANKS = (1, 4, 8, 17, 64)
ROWS = (1, 3, 63, 100)
MIXES = ("none", "identical", "distinct", "zipf", "skewed")


@dataclass(frozen=True)
class Case:
    """One point of the space that every kernel is checked over: see ALL_CASES."""

    rank: int
    num_rows: int
    hidden: int
    mix: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"r{self.rank}-{self.num_rows}x{self.hidden}-{self.mix}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def features(self) -> tuple[int, int]:
        """hidden, and the next of its kind: no pair is square."""
        return self.hidden, HIDDEN[(HIDDEN.index(self.hidden) + 1) % len(HIDDEN)]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the slots: two of the case's own, one that has no pair, and one low rank."""
        return (self.rank, 0, self.rank, min(self.rank, 8))

    def pairs(self) -> set[tuple[object, ...]]:
        """Every two of its values, with their axes."""
        values = (self.rank, self.num_rows, self.hidden, self.mix, self.dtype)
        return {(i, values[i], j, values[j]) for i, j in combinations(range(len(values)), 2)}


HIDDEN = (64, 576, 1000, 2049)
ALL_CASES = tuple(
    Case(*values) for values in product((*RANKS, 128, 256), ROWS, HIDDEN, MIXES, (torch.float32, torch.float16))
)


def covering_sample() -> tuple[Case, ...]:
    """Few cases in which every two values of different axes meet: greedily, the case with most pairs not yet seen."""
    pairs = {case: case.pairs() for case in ALL_CASES}
    unseen = set().union(*pairs.values())
    sample = []
    while unseen:
        best = max(pairs, key=lambda case: len(pairs[case] & unseen))
        sample.append(best)
        unseen -= pairs[best]
    return tuple(sample)


@dataclass(frozen=True)
class Batch:
    """Inputs of one op call; `y` and `shrunk` hold finite values in rows and columns that the op may read."""

    x: torch.Tensor
    y: torch.Tensor
    weights: SlotWeights
    segments: Segments


def make_segments(mix: str, num_rows: int, num_slots: int) -> Segments:
    """Cut rows into segments of one popularity, leaving a base row before, between and after where there is room."""
    match mix:
        case "none":
            lengths: list[int] = []
        case "identical":
            lengths = [max(1, num_rows - 2)]
        case "distinct":
            lengths = [1] * min(num_slots, max(1, num_rows // 2))
        case "zipf":
            total = sum(1 / (i + 1) for i in range(num_slots))
            lengths = [max(1, int(0.8 * num_rows / (i + 1) / total)) for i in range(num_slots)]
        case _:
            lengths = [max(1, num_rows - 4 * num_slots), *([1] * (num_slots - 1))]
    starts, kept, row = [], [], 1 if num_rows > 1 else 0
    for i, length in enumerate(lengths):
        if row + length > num_rows:
            break
        starts.append(row)
        kept.append(length)
        row += length + (1 if i % 3 == 1 else 0)
    return Segments(tuple(i % num_slots for i in range(len(kept))), tuple(starts), tuple(kept), num_rows)


def make_batch(
    mix: str, num_rows: int, ranks: tuple[int, ...], features: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Batch:
    """One slot per rank, rank 0 left empty; values of order 1 everywhere, the delta included."""
    in_features, out_features = features
    generator = torch.Generator().manual_seed(num_rows * 1000 + sum(ranks))
    weights = SlotWeights(len(ranks), in_features, out_features, dtype, "cpu", max_rank=max(ranks))
    for slot, rank in enumerate(ranks):
        a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        b = torch.randn(rank, out_features, generator=generator) / max(rank, 1) ** 0.5
        weights.set(slot, a.to(dtype), b.to(dtype).t())
    return Batch(
        x=torch.randn(num_rows, in_features, generator=generator).to(dtype),
        y=torch.randn(num_rows, out_features, generator=generator).to(dtype),
        weights=weights,
        segments=make_segments(mix, num_rows, len(ranks)),
    )


def slot_of_rows(segments: Segments) -> list[int | None]:
    """The slot of every row, None for a base row."""
    slots: list[int | None] = [None] * segments.num_rows
    for slot, start, stop in zip(segments.slots, segments.starts, segments.stops, strict=True):
        slots[start:stop] = [slot] * (stop - start)
    return slots


def true_shrink(batch: Batch) -> torch.Tensor:
    """float64 [num_rows, max_rank]: row by row, zero where the op writes nothing."""
    out = torch.zeros(batch.segments.num_rows, max(batch.weights.max_rank, 1), dtype=torch.float64)
    for row, slot in enumerate(slot_of_rows(batch.segments)):
        if slot is not None and (a := batch.weights.a(slot)) is not None:
            out[row, : a.shape[0]] = a.double() @ batch.x[row].double()
    return out


def true_expand(shrunk: torch.Tensor, batch: Batch, scale: float = 1.0) -> torch.Tensor:
    """float64 [num_rows, out]: y plus every row's delta."""
    out = batch.y.double()
    for row, slot in enumerate(slot_of_rows(batch.segments)):
        if slot is not None and (b := batch.weights.b(slot)) is not None:
            out[row] += scale * (b.double() @ shrunk[row, : b.shape[1]].double())
    return out


def untouched_rows(batch: Batch) -> torch.Tensor:
    """Boolean [num_rows]: base rows, and rows whose slot has no pair."""
    return torch.tensor([s is None or batch.weights.rank(s) == 0 for s in slot_of_rows(batch.segments)])


def written_columns(batch: Batch) -> torch.Tensor:
    """Boolean [num_rows, max_rank]: what lora_shrink owes."""
    ranks = [0 if s is None else batch.weights.rank(s) for s in slot_of_rows(batch.segments)]
    return torch.arange(max(batch.weights.max_rank, 1)) < torch.tensor(ranks).unsqueeze(1)


def assert_matches(name: str, got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare with the truth under the dtype's tolerance; the error names tensor, worst element and excess."""
    relative, absolute = TOLERANCES[dtype]
    excess = (got.double() - want.double()).abs() / (absolute + relative * want.double().abs())
    excess = torch.where(got.isnan(), float("inf"), excess)
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= 1.0, f"{name}: worst element at {int(excess.argmax())} is {worst:.2f} tolerances off ({dtype})"
