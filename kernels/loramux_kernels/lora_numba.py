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

from loramux_kernels.machine_numba import inline, ints, loop, next_item
from loramux_kernels.segments import AnySegments
from loramux_kernels.slot_weights import SlotWeights
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import (
    COLUMNS,
    LANES,
    MAX_ROWS,
    WIDE,
    expand_1,
    expand_2,
    expand_4,
    expand_narrow_1,
    expand_narrow_2,
    expand_narrow_4,
    shrink_1,
    shrink_2,
    shrink_4,
)

PIECE_ROWS = 64
PIECE_RANK = 32  # of a shrink: as many rows of A
PIECE_WIDTH = 8 * WIDE  # of an expand: columns
SHORT = 1 << 16  # multiplications: a loop of fewer is done before a second thread has begun
ITEM = 10  # numbers of an item

IntArray = npt.NDArray[np.int64]
Member = tuple[tuple[int, ...], int, int]  # ranks of its slots, out_features, first column of y
Batch = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # slots, starts and lengths of segments


def group(x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor) -> None:
    """The contract is `lora.lora_group`'s; the members have pairs, and rows lie as their elements follow each other."""
    shapes = tuple((weights.ranks, weights.out_features, first) for weights, first in members)
    plan = cast("Plan | None", segments.plans.get(shapes))
    if plan is None:
        plan = segments.plans[shapes] = Plan.of(shapes, segments)
    tables = [weights.float_table() for weights, _first in members]
    shrunk = plan.shrunk.data_ptr()
    work, stride = plan.work, 4 * plan.work.width
    rows = (x.data_ptr(), 4 * x.stride(0), x.shape[1])
    num_shrinks, num_expands = len(work.shrinks), len(work.expands)
    shrink().run(num_shrinks, *rows, shrunk, stride, plan.shrinks, *tables, alone=work.rank_rows * x.shape[1] < SHORT)
    results = (y.data_ptr(), 4 * y.stride(0))
    expand().run(num_expands, shrunk, stride, *results, plan.expands, *tables, alone=work.expand_size < SHORT)


@dataclass(frozen=True, slots=True)
class Work:
    """The items of both loops, [n, ITEM] each. width: columns of the intermediate, the members' side by side."""

    shrinks: IntArray
    expands: IntArray
    width: int
    rank_rows: int  # sum over rows of their ranks
    expand_size: int  # multiplications


@dataclass(frozen=True, slots=True)
class Plan:
    """A group's work in one step, the addresses of its items, and the rows between the loops."""

    work: Work
    shrinks: int
    expands: int
    shrunk: torch.Tensor  # [num_rows, width]

    @classmethod
    def of(cls, members: tuple[Member, ...], segments: AnySegments) -> Plan:
        work = cut(members, (segments.slots, segments.starts, segments.lengths))
        shrunk = torch.empty(segments.num_rows, work.width)
        return cls(work, work.shrinks.ctypes.data, work.expands.ctypes.data, shrunk)


@functools.lru_cache(maxsize=64)
def cut(members: tuple[Member, ...], batch: Batch) -> Work:
    """Cut the work of a group on a batch into items; kept, for the steps of a decode are alike."""
    shrinks: list[tuple[int, ...]] = []
    expands: list[tuple[int, ...]] = []
    column = rank_rows = expand_size = 0
    for member, (ranks, out_features, y_column) in enumerate(members):
        for slot, start, length in zip(*batch, strict=True):
            rank = ranks[slot]
            rank_rows += length * rank
            expand_size += length * rank * out_features
            for first in range(start, start + length if rank else start, PIECE_ROWS):
                rows = min(PIECE_ROWS, start + length - first)
                shrinks += [
                    (slot, member, first, rows, j, min(PIECE_RANK, rank - j), column, 0, 0, 0)
                    for j in range(0, rank, PIECE_RANK)
                ]
                pair = len(ranks) + slot  # B is in the second row of the table
                expands += [
                    (
                        pair,
                        member,
                        first,
                        rows,
                        rank,
                        column,
                        out_features,
                        o,
                        min(PIECE_WIDTH, out_features - o),
                        y_column,
                    )
                    for o in range(0, out_features, PIECE_WIDTH)
                ]
        max_rank = max((ranks[slot] for slot in batch[0]), default=0)
        column += -(-max_rank // COLUMNS) * COLUMNS  # a tile writes all of its columns
    return Work(
        _largest_first(shrinks, lambda item: item[3] * item[5]),
        _largest_first(expands, lambda item: item[3] * item[4] * item[8]),
        column,
        rank_rows,
        expand_size,
    )


def _largest_first(items: list[tuple[int, ...]], size: Callable[[tuple[int, ...]], int]) -> IntArray:
    return np.array(sorted(items, key=size, reverse=True), dtype=np.int64).reshape(-1, ITEM)


@inline
def _shrink_columns(x: int, num_rows: int, a: int, last: int, ahead: int, out: int, sizes: Any) -> None:
    """All rows by the 4 rows of A at an address; `sizes` as the tiles have them."""
    row = 0
    while row + 4 <= num_rows and MAX_ROWS >= 4:
        shrink_4(x + sizes[0] * row, a, last, ahead, out + sizes[2] * row, sizes)
        row += 4
        ahead = x + sizes[0] * (row + 4)
    while row + 2 <= num_rows:
        shrink_2(x + sizes[0] * row, a, last, ahead, out + sizes[2] * row, sizes)
        row += 2
        ahead = x + sizes[0] * (row + 2)
    if row < num_rows:
        shrink_1(x + sizes[0] * row, a, last, ahead, out + sizes[2] * row, sizes)


@functools.cache
def shrink() -> Loop:
    """Arguments: x, its stride, in_features, shrunk, its stride, items, then the members' tables."""

    def lora_shrink_loop(a: Any) -> None:
        in_features, items = a[4], ints(a[7], ITEM * a[1])
        stride = 4 * in_features
        while True:
            item = ITEM * next_item(a)
            if item >= ITEM * a[1]:
                break
            pair, member, first, num_rows, start, rank, column = items[item : item + 7]
            x, out = a[2] + a[3] * first, a[5] + a[6] * first + 4 * (column + start)
            weights = ints(a[8 + member], pair + 1)[pair] + stride * start
            for j in range(0, rank, COLUMNS):
                ahead = weights + stride * (j + COLUMNS if j + 2 * COLUMNS <= rank else j)
                sizes = (a[3], stride, a[6], in_features)
                _shrink_columns(x, num_rows, weights + stride * j, rank - j - 1, ahead, out + 4 * j, sizes)

    return Loop(loop(lora_shrink_loop))


@inline
def _expand_columns(s: int, num_rows: int, b: int, ahead: int, y: int, sizes: Any) -> None:
    """All rows by the 4 vectors of B.T at an address."""
    row = 0
    while row + 4 <= num_rows and MAX_ROWS >= 4:
        expand_4(s + sizes[0] * row, b, 0, ahead, y + sizes[2] * row, sizes)
        ahead = 0
        row += 4
    while row + 2 <= num_rows:
        expand_2(s + sizes[0] * row, b, 0, ahead, y + sizes[2] * row, sizes)
        ahead = 0
        row += 2
    if row < num_rows:
        expand_1(s + sizes[0] * row, b, 0, ahead, y + sizes[2] * row, sizes)


@inline
def _expand_narrow(s: int, num_rows: int, b: int, width: int, y: int, sizes: Any) -> None:
    """All rows by the first `width` columns, at most a vector, of B.T at an address."""
    row = 0
    while row + 4 <= num_rows and MAX_ROWS >= 4:
        expand_narrow_4(s + sizes[0] * row, b, width, 0, y + sizes[2] * row, sizes)
        row += 4
    while row + 2 <= num_rows:
        expand_narrow_2(s + sizes[0] * row, b, width, 0, y + sizes[2] * row, sizes)
        row += 2
    if row < num_rows:
        expand_narrow_1(s + sizes[0] * row, b, width, 0, y + sizes[2] * row, sizes)


@functools.cache
def expand() -> Loop:
    """Arguments: shrunk, its stride, y, its stride, items, then the members' tables."""

    def lora_expand_loop(a: Any) -> None:
        items = ints(a[6], ITEM * a[1])
        while True:
            item = ITEM * next_item(a)
            if item >= ITEM * a[1]:
                break
            pair, member, first, num_rows, rank, column, out_features, start, width, y_column = items[item : item + 10]
            s, y = a[2] + a[3] * first + 4 * column, a[4] + a[5] * first + 4 * (y_column + start)
            weights = ints(a[7 + member], pair + 1)[pair] + 4 * start
            sizes = (a[3], 4 * out_features, a[5], rank)
            whole = width - width % WIDE
            for o in range(0, whole, WIDE):
                ahead = 4 * WIDE if o + 2 * WIDE <= whole else 0
                _expand_columns(s, num_rows, weights + 4 * o, ahead, y + 4 * o, sizes)
            for o in range(whole, width, LANES):
                _expand_narrow(s, num_rows, weights + 4 * o, width - o, y + 4 * o, sizes)

    return Loop(loop(lora_expand_loop))
