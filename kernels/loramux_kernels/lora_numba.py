"""The numba form of `lora_group`: one loop that first shrinks for all members and segments, then expands for all.

Its items are pieces of like size, the largest first, so that the threads end together however ranks and rows are
spread. Who comes to the first expand waits until the last shrink is done. What the pieces are depends on ranks and
segments alone: every layer of a step uses one plan, and so does the next step of the same sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from loramux_kernels.emitter_numba import COLUMNS, LANES
from loramux_kernels.machine_numba import count_at, count_up, inline, ints, loop, next_item
from loramux_kernels.segments import AnySegments
from loramux_kernels.slot_weights import SlotWeights
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import WIDE, expand, narrow_expand, nbytes_of, shrink

PIECE_ROWS = 64
PIECE_RANK = 32  # of a shrink: as many rows of A
PIECE_WIDTH = 8 * WIDE  # of an expand: columns
SHORT = 1 << 16  # multiplications: a loop of fewer is done before a second thread has begun
ITEM = 11  # numbers of an item, the first of which is which of ITEM_TYPES its pair is of
DONE = 2  # the argument that counts finished shrinks

IntArray = npt.NDArray[np.int64]
Member = tuple[tuple[int, ...], tuple[int, ...], int, int]  # by slot: ranks, types; out_features, first column of y
Batch = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # slots, starts and lengths of segments
Item = tuple[int, ...]


def group(x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor) -> None:
    """The contract is `lora.lora_group`'s; rows lie as their elements follow each other."""
    rows = (x.data_ptr(), 4 * x.stride(0), x.shape[1]), (y.data_ptr(), 4 * y.stride(0))
    plan = _plan(members, segments)
    lora().run(
        *_numbers(plan, members, *rows),
        alone=plan.work.rank_rows * x.shape[1] + plan.work.expand_size < SHORT,
        renew=lambda segments: _numbers(_plan(members, segments), members, *rows),
    )


def _numbers(
    plan: Plan, members: Sequence[tuple[SlotWeights, int]], x: tuple[int, ...], y: tuple[int, ...]
) -> tuple[int, ...]:
    """Items and arguments of the loop; x and y: what it is told of them."""
    work = plan.work
    of_work = (work.num_items, 0, work.num_shrinks, work.items_address)
    tables = (weights.host_table() for weights, _first in members)
    return (*of_work, *x, plan.shrunk_address, 4 * work.width, *y, *tables)


def _plan(members: Sequence[tuple[SlotWeights, int]], segments: AnySegments) -> Plan:
    """The plan for what is in the slots now; the segments keep it, for the other layers."""
    shapes = tuple((weights.ranks, weights.item_types, weights.out_features, first) for weights, first in members)
    plan = cast("Plan | None", segments.plans.get(shapes))
    if plan is None:
        plan = segments.plans[shapes] = Plan.of(shapes, segments)
    return plan


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do. width: columns of the intermediate, the members' side by side."""

    items: IntArray  # [num_items, ITEM], shrinks before expands
    items_address: int  # asking numpy for it takes as long as a short loop
    num_items: int
    num_shrinks: int
    width: int
    rank_rows: int  # sum over rows of their ranks
    expand_size: int  # multiplications


@dataclass(frozen=True, slots=True)
class Plan:
    """A group's work on a batch, and the rows between its halves."""

    work: Work
    shrunk: npt.NDArray[np.float32]  # [num_rows, width]; not torch's, for a recording lets a layer use its memory again
    shrunk_address: int

    @classmethod
    def of(cls, members: tuple[Member, ...], segments: AnySegments) -> Plan:
        work = cut(members, (segments.slots, segments.starts, segments.lengths))
        shrunk = np.empty((segments.num_rows, work.width), dtype=np.float32)
        return cls(work, shrunk, shrunk.ctypes.data)


@functools.lru_cache(maxsize=64)
def cut(members: tuple[Member, ...], batch: Batch) -> Work:
    """Cut the work of a group on a batch into items; kept, for the steps of a decode are alike."""
    shrinks: list[Item] = []
    expands: list[Item] = []
    width = rank_rows = expand_size = 0
    for member, (ranks, types, out_features, y_column) in enumerate(members):
        for slot, start, length in zip(*batch, strict=True):
            rank = ranks[slot]
            rank_rows += length * rank
            expand_size += length * rank * out_features
            for first in range(start, start + length if rank else start, PIECE_ROWS):
                rows = min(PIECE_ROWS, start + length - first)
                shrinks += [
                    (types[slot], slot, member, first, rows, min(PIECE_RANK, rank - j), width, j, 0, 0, 0)
                    for j in range(0, rank, PIECE_RANK)
                ]
                pair = len(ranks) + slot  # B is in the second row of the table
                head = (types[slot], pair, member, first, rows, rank, width, out_features)
                expands += [
                    (*head, o, min(PIECE_WIDTH, out_features - o), y_column)
                    for o in range(0, out_features, PIECE_WIDTH)
                ]
        max_rank = max((ranks[slot] for slot in batch[0]), default=0)
        width += -(-max_rank // COLUMNS) * COLUMNS  # a tile writes all of its columns
    shrinks.sort(key=lambda item: item[4] * item[5], reverse=True)
    expands.sort(key=lambda item: item[4] * item[5] * item[9], reverse=True)
    items = np.array(shrinks + expands, dtype=np.int64).reshape(-1, ITEM)
    return Work(items, items.ctypes.data, len(items), len(shrinks), width, rank_rows, expand_size)


@inline
def _shrink(item: Any, x: int, x_stride: int, in_features: int, shrunk: int, stride: int, weights: int) -> None:
    """Shrink a piece: some rows by some of the rank. weights: where A begins."""
    item_type, _pair, _member, first, num_rows, rank, column, start = item[:8]
    row_nbytes = nbytes_of(item_type) * in_features
    rows, out = x + x_stride * first, shrunk + stride * first + 4 * (column + start)
    weights += row_nbytes * start
    sizes = (x_stride, row_nbytes, stride, in_features)
    for j in range(0, rank, COLUMNS):
        ahead = weights + row_nbytes * (j + COLUMNS if j + 2 * COLUMNS <= rank else j)
        shrink(item_type, rows, num_rows, weights + row_nbytes * j, rank - j - 1, ahead, out + 4 * j, sizes)


@inline
def _expand(item: Any, shrunk: int, stride: int, y: int, y_stride: int, weights: int) -> None:
    """Expand a piece: some rows by some of the outputs. weights: where B begins."""
    item_type, _pair, _member, first, num_rows, rank, column, out_features, start, width, y_column = item
    nbytes = nbytes_of(item_type)
    rows, results = shrunk + stride * first + 4 * column, y + y_stride * first + 4 * (y_column + start)
    weights += nbytes * start
    sizes = (stride, nbytes * out_features, y_stride, rank)
    whole = width - width % WIDE
    for o in range(0, whole, WIDE):
        ahead = nbytes * WIDE if o + 2 * WIDE <= whole else 0
        expand(item_type, rows, num_rows, weights + nbytes * o, ahead, results + 4 * o, sizes)
    for o in range(whole, width, LANES):
        narrow_expand(item_type, rows, num_rows, weights + nbytes * o, width - o, 0, results + 4 * o, sizes)


@functools.cache
def lora() -> Loop:
    """The loop of a group.

    Arguments: finished shrinks (0), how many there are, items, x, its stride, in_features, shrunk, its stride, y, its
    stride, then the members' tables.
    """

    def lora_loop(a: Any) -> None:
        items = ints(a[4], ITEM * a[1])
        while True:
            number = next_item(a)
            if number >= a[1]:
                break
            item = items[ITEM * number : ITEM * (number + 1)]
            weights = ints(a[12 + item[2]], item[1] + 1)[item[1]]
            if number < a[3]:
                _shrink(item, a[5], a[6], a[7], a[8], a[9], weights)
                count_up(a, DONE)
            else:
                while count_at(a, DONE) < a[3]:  # no thread may expand before
                    pass
                _expand(item, a[8], a[9], a[10], a[11], weights)

    return Loop(loop(lora_loop))
