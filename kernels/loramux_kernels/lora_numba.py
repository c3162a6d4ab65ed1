"""The numba form of `lora_group`: one loop shrinks for all members and segments, one expands for all.

A loop's items are pieces of like size, the largest first, so that the threads end together however ranks and rows are
spread. What the pieces are depends on ranks and segments alone: every layer of a step uses one plan, and so does the
next step of the same sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from loramux_kernels.machine_numba import ints, loop, next_item
from loramux_kernels.segments import AnySegments
from loramux_kernels.slot_weights import ITEM_TYPES, SlotWeights
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import (
    COLUMNS,
    ITEM_NBYTES,
    LANES,
    WIDE,
    expand_bfloat16,
    expand_float16,
    expand_float32,
    narrow_bfloat16,
    narrow_float16,
    narrow_float32,
    shrink_bfloat16,
    shrink_float16,
    shrink_float32,
)

PIECE_ROWS = 64
PIECE_RANK = 32  # of a shrink: as many rows of A
PIECE_WIDTH = 8 * WIDE  # of an expand: columns
SHORT = 1 << 16  # multiplications: a loop of fewer is done before a second thread has begun
ITEM = 10  # numbers of an item

IntArray = npt.NDArray[np.int64]
Member = tuple[tuple[int, ...], tuple[int, ...], int, int]  # by slot: ranks, types; out_features, first column of y
Batch = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # slots, starts and lengths of segments
Item = tuple[int, ...]


def group(x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor) -> None:
    """The contract is `lora.lora_group`'s; the members have pairs, and rows lie as their elements follow each other."""
    shapes = tuple((weights.ranks, weights.item_types, weights.out_features, first) for weights, first in members)
    plan = cast("Plan | None", segments.plans.get(shapes))
    if plan is None:
        plan = segments.plans[shapes] = Plan.of(shapes, segments)
    tables = [weights.host_table() for weights, _first in members]
    shrunk, stride = plan.shrunk.data_ptr(), 4 * plan.work.width
    rows, results = (x.data_ptr(), 4 * x.stride(0), x.shape[1]), (y.data_ptr(), 4 * y.stride(0))
    for part in plan.work.parts:
        is_short = part.rank_rows * x.shape[1] < SHORT
        shrink(part.item_type).run(
            len(part.shrinks), *rows, shrunk, stride, part.shrinks_address, *tables, alone=is_short
        )
    for part in plan.work.parts:
        is_short = part.expand_size < SHORT
        expand(part.item_type).run(
            len(part.expands), shrunk, stride, *results, part.expands_address, *tables, alone=is_short
        )


@dataclass(frozen=True, slots=True)
class Part:
    """The items of both loops, [n, ITEM] each, for pairs of one of ITEM_TYPES."""

    item_type: int
    shrinks: IntArray
    expands: IntArray
    shrinks_address: int  # asking numpy for it takes as long as a short loop
    expands_address: int
    rank_rows: int  # sum over rows of their ranks
    expand_size: int  # multiplications

    @classmethod
    def of(cls, item_type: int, shrinks: IntArray, expands: IntArray, rank_rows: int, expand_size: int) -> Part:
        return cls(item_type, shrinks, expands, shrinks.ctypes.data, expands.ctypes.data, rank_rows, expand_size)


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do for the pairs of each type. width: columns of the intermediate, the members' side by side."""

    parts: tuple[Part, ...]
    width: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A group's work in one step, and the rows between the loops."""

    work: Work
    shrunk: torch.Tensor  # [num_rows, width]

    @classmethod
    def of(cls, members: tuple[Member, ...], segments: AnySegments) -> Plan:
        work = cut(members, (segments.slots, segments.starts, segments.lengths))
        return cls(work, torch.empty(segments.num_rows, work.width))


@functools.lru_cache(maxsize=64)
def cut(members: tuple[Member, ...], batch: Batch) -> Work:
    """Cut the work of a group on a batch into items; kept, for the steps of a decode are alike."""
    columns: list[int] = []
    width = 0
    for ranks, _types, _out_features, _first in members:
        columns.append(width)
        max_rank = max((ranks[slot] for slot in batch[0]), default=0)
        width += -(-max_rank // COLUMNS) * COLUMNS  # a tile writes all of its columns
    present = {types[slot] for ranks, types, _out, _first in members for slot in batch[0] if ranks[slot]}
    return Work(tuple(_cut_part(item_type, members, columns, batch) for item_type in sorted(present)), width)


def _cut_part(item_type: int, members: tuple[Member, ...], columns: Sequence[int], batch: Batch) -> Part:
    shrinks: list[Item] = []
    expands: list[Item] = []
    rank_rows = expand_size = 0
    for member, (ranks, types, out_features, y_column) in enumerate(members):
        for slot, start, length in zip(*batch, strict=True):
            rank = ranks[slot] if types[slot] == item_type else 0
            rank_rows += length * rank
            expand_size += length * rank * out_features
            for first in range(start, start + length if rank else start, PIECE_ROWS):
                rows = min(PIECE_ROWS, start + length - first)
                shrinks += [
                    (slot, member, first, rows, j, min(PIECE_RANK, rank - j), columns[member], 0, 0, 0)
                    for j in range(0, rank, PIECE_RANK)
                ]
                pair = len(ranks) + slot  # B is in the second row of the table
                head = (pair, member, first, rows, rank, columns[member], out_features)
                expands += [
                    (*head, o, min(PIECE_WIDTH, out_features - o), y_column)
                    for o in range(0, out_features, PIECE_WIDTH)
                ]
    return Part.of(
        item_type,
        _largest_first(shrinks, lambda item: item[3] * item[5]),
        _largest_first(expands, lambda item: item[3] * item[4] * item[8]),
        rank_rows,
        expand_size,
    )


def _largest_first(items: list[Item], size: Callable[[Item], int]) -> IntArray:
    return np.array(sorted(items, key=size, reverse=True), dtype=np.int64).reshape(-1, ITEM)


@functools.cache
def shrink(item_type: int) -> Loop:
    """A loop for pairs of one of ITEM_TYPES.

    Arguments: x, its stride, in_features, shrunk, its stride, items, then the members' tables.
    """
    nbytes = ITEM_NBYTES[ITEM_TYPES[item_type]]

    def lora_shrink_loop(a: Any) -> None:
        in_features, items = a[4], ints(a[7], ITEM * a[1])
        stride = nbytes * in_features
        sizes = (a[3], stride, a[6], in_features)
        while True:
            item = ITEM * next_item(a)
            if item >= ITEM * a[1]:
                break
            pair, member, first, num_rows, start, rank, column = items[item : item + 7]
            x, out = a[2] + a[3] * first, a[5] + a[6] * first + 4 * (column + start)
            weights = ints(a[8 + member], pair + 1)[pair] + stride * start
            for j in range(0, rank, COLUMNS):
                ahead = weights + stride * (j + COLUMNS if j + 2 * COLUMNS <= rank else j)
                rows_of_a, last, to = weights + stride * j, rank - j - 1, out + 4 * j
                if item_type == 0:
                    shrink_float32(x, num_rows, rows_of_a, last, ahead, to, sizes)
                elif item_type == 1:
                    shrink_float16(x, num_rows, rows_of_a, last, ahead, to, sizes)
                else:
                    shrink_bfloat16(x, num_rows, rows_of_a, last, ahead, to, sizes)

    return Loop(loop(lora_shrink_loop))


@functools.cache
def expand(item_type: int) -> Loop:
    """A loop for pairs of one of ITEM_TYPES.

    Arguments: shrunk, its stride, y, its stride, items, then the members' tables.
    """
    nbytes = ITEM_NBYTES[ITEM_TYPES[item_type]]

    def lora_expand_loop(a: Any) -> None:
        items = ints(a[6], ITEM * a[1])
        while True:
            item = ITEM * next_item(a)
            if item >= ITEM * a[1]:
                break
            pair, member, first, num_rows, rank, column, out_features, start, width, y_column = items[item : item + 10]
            s, y = a[2] + a[3] * first + 4 * column, a[4] + a[5] * first + 4 * (y_column + start)
            weights = ints(a[7 + member], pair + 1)[pair] + nbytes * start
            sizes = (a[3], nbytes * out_features, a[5], rank)
            whole = width - width % WIDE
            for o in range(0, whole, WIDE):
                ahead = nbytes * WIDE if o + 2 * WIDE <= whole else 0
                columns_of_b, to = weights + nbytes * o, y + 4 * o
                if item_type == 0:
                    expand_float32(s, num_rows, columns_of_b, 0, ahead, to, sizes)
                elif item_type == 1:
                    expand_float16(s, num_rows, columns_of_b, 0, ahead, to, sizes)
                else:
                    expand_bfloat16(s, num_rows, columns_of_b, 0, ahead, to, sizes)
            for o in range(whole, width, LANES):
                columns_of_b, to = weights + nbytes * o, y + 4 * o
                if item_type == 0:
                    narrow_float32(s, num_rows, columns_of_b, width - o, 0, to, sizes)
                elif item_type == 1:
                    narrow_float16(s, num_rows, columns_of_b, width - o, 0, to, sizes)
                else:
                    narrow_bfloat16(s, num_rows, columns_of_b, width - o, 0, to, sizes)

    return Loop(loop(lora_expand_loop))
