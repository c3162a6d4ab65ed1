"""Batches of rows with adapters, and adapters' pairs in slots: what the ops are checked and timed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from loramux_kernels import Segments, SlotWeights

Mix = Literal["none", "identical", "distinct", "zipf", "skewed"]
Pair = tuple[torch.Tensor, torch.Tensor]


def mixed_segments(mix: Mix, num_rows: int, num_slots: int) -> Segments:
    """Give rows to slots by one popularity, a base row between two segments as long as there is room."""
    lengths = {
        "none": [],
        "identical": [num_rows],
        "distinct": [1] * num_slots,
        "zipf": [max(1, num_rows // (2 * (slot + 1))) for slot in range(num_slots)],
        "skewed": [max(1, num_rows - 2 * num_slots), *[1] * (num_slots - 1)],
    }[mix]
    slots, starts, kept, row = [], [], [], min(1, num_rows - 1)
    for slot, length in enumerate(lengths):
        if row < num_rows:
            slots.append(slot)
            starts.append(row)
            kept.append(min(length, num_rows - row))
            row += length + 1
    return Segments(tuple(slots), tuple(starts), tuple(kept), num_rows)


def even_segments(num_rows: int, num_slots: int) -> Segments:
    """Give every slot as many rows, and leave no base row; num_slots divides num_rows."""
    length = num_rows // num_slots
    assert length * num_slots == num_rows
    return Segments(tuple(range(num_slots)), tuple(range(0, num_rows, length)), (length,) * num_slots, num_rows)


def slots_of_rows(segments: Segments, base: int) -> list[int]:
    """The slot of every row, `base` for a base row."""
    slots = [base] * segments.num_rows
    for slot, start, stop in zip(segments.slots, segments.starts, segments.stops, strict=True):
        slots[start:stop] = [slot] * (stop - start)
    return slots


def random_pairs(ranks: Sequence[int], in_features: int, out_features: int, like: torch.Tensor) -> list[Pair | None]:
    """One pair per slot on the device and in the dtype of `like`, whose deltas are of order 1; None for rank 0."""
    pairs: list[Pair | None] = []
    for rank in ranks:
        a = like.new_empty(rank, in_features).normal_(std=in_features**-0.5)
        b = like.new_empty(rank, out_features).normal_(std=max(rank, 1) ** -0.5).t()
        pairs.append((a, b) if rank else None)
    return pairs


def slot_weights(pairs: Sequence[Pair | None], in_features: int, out_features: int, like: torch.Tensor) -> SlotWeights:
    """Put one pair into each slot."""
    max_rank = max(len(pair[0]) for pair in pairs if pair is not None)
    weights = SlotWeights(len(pairs), in_features, out_features, like.dtype, like.device, max_rank=max_rank)
    for slot, pair in enumerate(pairs):
        weights.set(slot, *(pair or (None, None)))
    return weights
