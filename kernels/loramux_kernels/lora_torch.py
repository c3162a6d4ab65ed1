"""The torch form of `lora_linear`: how a CPU adds the deltas of many small segments with few calls.

A decode step holds one or a few rows per adapter, so the price is that of calls, not of arithmetic. Neighbouring
segments of one length and of about one rank are therefore a run, done by two batched products over stacks of their
pairs; everything else is two products per segment. Both sum in float32 and never mix rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from loramux_kernels.segments import Segments
from loramux_kernels.slot_weights import SlotWeights

# Measured on one thread (kernels/README.md). Stacked is faster at every size tried, by less the larger: the first two
# limits bound the memory of the copies. Padding costs more than it saves somewhere between 2.3 and 4.3.
MAX_RUN_ROWS = 16  # rows per segment
MAX_STACKED_ELEMENTS = 1 << 17  # rank * (in + out) of one pair
MAX_PADDING = 2  # elements read through padding to a run's highest rank, over elements needed


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent segments done together: rows start..stop, `length` rows of each slot; one slot alone is a run too."""

    slots: tuple[int, ...]
    start: int
    stop: int
    length: int


def linear(x: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor) -> None:
    """Add `y[row] += (x[row] @ A.T) @ B.T` to the rows of every segment; the contract is `lora.lora_linear`'s."""
    for run in _runs(segments, weights):
        if len(run.slots) == 1 or (stack := weights.stack(run.slots)) is None:
            _add_one_by_one(x, weights, run, y)
            continue
        shape = (len(run.slots), run.length, -1)
        rows = x[run.start : run.stop].view(shape).float()  # float32 rows are not copied
        shrunk = torch.bmm(rows, stack[0])  # [segments, rows, rank]
        if y.dtype == torch.float32:
            y[run.start : run.stop].view(shape).baddbmm_(shrunk, stack[1])
        else:
            y[run.start : run.stop].view(shape).add_(torch.bmm(shrunk, stack[1]))


def _add_one_by_one(x: torch.Tensor, weights: SlotWeights, run: Run, y: torch.Tensor) -> None:
    for slot, start in zip(run.slots, range(run.start, run.stop, run.length), strict=True):
        a_transposed, b_transposed = weights.transposed(slot)
        shrunk = x[start : start + run.length].float().mm(a_transposed)
        rows = y[start : start + run.length]
        if y.dtype == torch.float32:
            rows.addmm_(shrunk, b_transposed)
        else:
            rows.add_(shrunk.mm(b_transposed))


def _runs(segments: Segments, weights: SlotWeights) -> tuple[Run, ...]:
    """The runs of a batch for a module of these ranks: made once per step and kept with the segments."""
    key = (weights.ranks, weights.in_features + weights.out_features)
    plan = segments.plans.get(key)
    if plan is None:
        plan = segments.plans[key] = _plan_runs(segments, *key)
    return cast("tuple[Run, ...]", plan)


def _plan_runs(segments: Segments, ranks: tuple[int, ...], features: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    for slot, start, length in zip(segments.slots, segments.starts, segments.lengths, strict=True):
        if not ranks[slot]:
            continue
        if runs and (joined := _joined(runs[-1], slot, start, length, ranks=ranks, features=features)):
            runs[-1] = joined
        else:
            runs.append(Run((slot,), start, start + length, length))
    return tuple(runs)


def _joined(run: Run, slot: int, start: int, length: int, *, ranks: tuple[int, ...], features: int) -> Run | None:
    """The run with one more segment, None where the two are better done apart."""
    if start != run.stop or length != run.length or length > MAX_RUN_ROWS:
        return None
    slots = (*run.slots, slot)
    max_rank = max(ranks[s] for s in slots)
    if max_rank * features > MAX_STACKED_ELEMENTS:
        return None
    if max_rank * len(slots) > MAX_PADDING * sum(ranks[s] for s in slots):
        return None
    return Run(slots, run.start, start + length, length)
