"""The ops against float64, and rows alone against the same rows in a batch.

Results are compared under one tolerance per dtype, those of rows alone to the bit. What an op must leave alone is NaN
or a base row, and must be that afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from loramux_kernels import (
    Segments,
    SlotWeights,
    lora_embedding,
    lora_expand,
    lora_group,
    lora_linear,
    lora_shrink,
    select_backend,
)
from on_device.batches import Mix, Pair, mixed_segments, random_pairs, slot_weights, slots_of_rows
from on_device.peers_lora_triton import PeerMapping, PeerModule, add_deltas

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 4e-3),
    torch.bfloat16: (8e-3, 3e-2),
}
"""Relative and absolute, of values of order 1: float32 for sums of 8,192 products, 16 bits for a result's rounding."""
ALONE_ROWS = 4
EMBED_SCALE = 24.0


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is gone through: every combination, but that each input width has one output width."""

    features: Sequence[tuple[int, int]]
    rows: Sequence[int]
    ranks: Sequence[tuple[int, ...]]
    mixes: Sequence[Mix]
    dtypes: Sequence[torch.dtype]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One module's pairs, in both schemes' forms, and rows for it; for an embedding, `token_ids` pick columns of A."""

    x: torch.Tensor
    y: torch.Tensor
    token_ids: torch.Tensor
    pairs: Sequence[Pair | None]
    weights: SlotWeights
    peers: PeerModule
    segments: Segments

    def row(self, row: int, slot: int) -> Inputs:
        """That row as a batch of its own."""
        one = slice(row, row + 1)
        segments = Segments((slot,), (0,), (1,), 1)
        return replace(self, x=self.x[one], y=self.y[one], token_ids=self.token_ids[one], segments=segments)


@dataclass(frozen=True, slots=True)
class Checked:
    """An op in one dtype. worst: in tolerances. num_variant: rows that had other bits alone, or base rows changed."""

    op: str
    dtype: torch.dtype
    num_cases: int
    worst: float
    num_variant: int


@dataclass(frozen=True, slots=True)
class Op:
    """`run` and its `truth` in float64, both of [num_rows, columns]; NaN where nothing is written."""

    name: str
    run: Callable[[Inputs], torch.Tensor]
    truth: Callable[[Inputs], torch.Tensor]
    is_invariant: bool = True


def check_ops(shapes: Shapes, device: torch.device) -> list[Checked]:
    """Go through all shapes by the Triton kernels."""
    return by_triton(shapes.dtypes, lambda dtype: _check_dtype(shapes, device, dtype))


def by_triton(dtypes: Sequence[torch.dtype], check: Callable[[torch.dtype], Iterator[Checked]]) -> list[Checked]:
    """What `check` finds of every dtype where ops take the Triton kernels."""
    select_backend("triton")
    try:
        return [checked for dtype in dtypes for checked in check(dtype)]
    finally:
        select_backend(None)


def excess(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest error as a share of what TOLERANCES allow; infinite where there is a NaN."""
    relative, absolute = TOLERANCES[got.dtype]
    shares = (got.double() - want).abs() / (absolute + relative * want.abs())
    return float(shares.nan_to_num(nan=float("inf")).max())


def _check_dtype(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    found: dict[str, list[tuple[float, int]]] = {op.name: [] for op in OPS}
    for inputs in _cases(shapes, device, dtype):
        for op in OPS:
            found[op.name].append(_check(op, inputs))
    for name, results in found.items():
        worst, num_variant = max(worst for worst, _ in results), sum(number for _, number in results)
        yield Checked(name, dtype, len(results), worst, num_variant)


def _cases(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Inputs]:
    torch.manual_seed(0)
    like = torch.empty(0, dtype=dtype, device=device)
    for (in_features, out_features), ranks in product(shapes.features, shapes.ranks):
        pairs = random_pairs(ranks, in_features, out_features, like)
        weights = slot_weights(pairs, in_features, out_features, like)
        peers = PeerModule(
            in_features, (out_features,), num_slots=len(ranks), max_rank=max(ranks), dtype=dtype, device=device
        )
        for slot, pair in enumerate(pairs):
            if pair is not None:
                peers.set(slot, 0, *pair)
        for num_rows, mix in product(shapes.rows, shapes.mixes):
            yield Inputs(
                x=like.new_empty(num_rows, in_features).normal_(),
                y=like.new_empty(num_rows, out_features).normal_(),
                token_ids=torch.randint(in_features, (num_rows,), device=device),
                pairs=pairs,
                weights=weights,
                peers=peers,
                segments=mixed_segments(mix, num_rows, len(ranks)),
            )


def _check(op: Op, inputs: Inputs) -> tuple[float, int]:
    got, want = op.run(inputs), op.truth(inputs)
    unwritten = got.isnan() & want.isnan()
    worst = excess(got.masked_fill(unwritten, 0), want.masked_fill(unwritten, 0))
    return worst, _num_variant(op, inputs, got) if op.is_invariant else 0


def _num_variant(op: Op, inputs: Inputs, got: torch.Tensor) -> int:
    segments = inputs.segments
    firsts = list(zip(segments.slots, segments.starts, strict=True))
    lasts = [(slot, stop - 1) for slot, stop in zip(segments.slots, segments.stops, strict=True)]
    rows = [*firsts, *lasts][:: max(1, 2 * len(firsts) // ALONE_ROWS)]
    num_variant = sum(not _same(op.run(inputs.row(row, slot))[0], got[row]) for slot, row in rows)
    if got.shape == inputs.y.shape:
        base = torch.tensor(slots_of_rows(segments, -1), device=got.device) < 0
        num_variant += int((got[base] != inputs.y[base]).any(1).sum())
    return num_variant


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _segments_with_pairs(inputs: Inputs) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    segments = inputs.segments
    for slot, start, stop in zip(segments.slots, segments.starts, segments.stops, strict=True):
        if (pair := inputs.pairs[slot]) is not None:
            yield slice(start, stop), pair[0].double(), pair[1].double()


def _nan(inputs: Inputs, dtype: torch.dtype) -> torch.Tensor:
    columns = max(len(pair[0]) for pair in inputs.pairs if pair is not None)
    return torch.full((len(inputs.x), columns), float("nan"), dtype=dtype, device=inputs.x.device)


def _true_shrink(inputs: Inputs) -> torch.Tensor:
    out = _nan(inputs, torch.float64)
    for rows, a, _b in _segments_with_pairs(inputs):
        out[rows, : len(a)] = inputs.x[rows].double() @ a.T
    return out


def _true_expand(inputs: Inputs) -> torch.Tensor:
    out = inputs.y.double()
    for rows, a, b in _segments_with_pairs(inputs):
        out[rows] += inputs.x[rows].double() @ a.T @ b.T
    return out


def _true_group(inputs: Inputs) -> torch.Tensor:
    return torch.cat([_true_expand(inputs)] * 2, dim=1)


def _true_embedding(inputs: Inputs) -> torch.Tensor:
    out = inputs.y.double()
    for rows, a, b in _segments_with_pairs(inputs):
        out[rows] += EMBED_SCALE * (a[:, inputs.token_ids[rows]].T @ b.T)
    return out


def _shrink(inputs: Inputs) -> torch.Tensor:
    out = _nan(inputs, torch.float32)
    lora_shrink(inputs.x, inputs.weights, inputs.segments, out)
    return out


def _expand(inputs: Inputs) -> torch.Tensor:
    y = inputs.y.clone()
    lora_expand(_true_shrink(inputs).float(), inputs.weights, inputs.segments, y)
    return y


def _linear(inputs: Inputs) -> torch.Tensor:
    y = inputs.y.clone()
    lora_linear(inputs.x, inputs.weights, inputs.segments, y)
    return y


def _group(inputs: Inputs) -> torch.Tensor:
    y = torch.cat([inputs.y] * 2, dim=1)
    lora_group(inputs.x, [(inputs.weights, 0), (inputs.weights, inputs.y.shape[1])], inputs.segments, y)
    return y


def _embedding(inputs: Inputs) -> torch.Tensor:
    y = inputs.y.clone()
    lora_embedding(inputs.token_ids, inputs.weights, inputs.segments, y, EMBED_SCALE)
    return y


def _peers(inputs: Inputs) -> torch.Tensor:
    y = inputs.y.clone()
    slots = torch.tensor(slots_of_rows(inputs.segments, len(inputs.pairs)), device=y.device)
    is_decode = len(y) <= len(inputs.segments.slots)
    add_deltas(inputs.x, inputs.peers, PeerMapping.of(slots, len(inputs.pairs), is_decode=is_decode), y)
    return y


OPS = (
    Op("lora_shrink", _shrink, _true_shrink),
    Op("lora_expand", _expand, _true_expand),
    Op("lora_linear", _linear, _true_expand),
    Op("lora_group", _group, _true_group),
    Op("lora_embedding", _embedding, _true_embedding),
    Op("the peers' shrink + expand", _peers, _true_expand, is_invariant=False),
)
