"""The loop of `int8.int8_linear` in numba: each weight is read from memory once, and becomes a float in a register."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from loramux_kernels.machine_numba import CACHE_LINE, floats, inline, loop, next_item, prefetch
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import COLUMNS, MAX_ROWS, int8_1, int8_2, int8_4

AHEAD = 4096  # bytes from what is multiplied to what is fetched; 2 to 8 KiB are alike, none is a tenth slower
ITEM_NBYTES = 1 << 15  # weights of an item: later rows find them in the first cache


def columns_per_item(in_features: int) -> int:
    """How many outputs an item has: whole tiles of them."""
    return max(1, ITEM_NBYTES // (COLUMNS * in_features)) * COLUMNS


@inline
def _scale(sums: Any, rows: int, columns: int, scales: int, y: int, stride: int) -> None:
    """Write a tile's sums, each times its column's scale, to y."""
    scale = floats(scales, columns)
    for row in range(rows):
        out = floats(y + stride * row, columns)
        for column in range(columns):
            out[column] = sums[row * COLUMNS + column] * scale[column]


@functools.cache
def int8_linear() -> Loop:
    """Arguments: x, num_rows, in_features, values, scales, y, out_features, outputs of an item. Items: outputs."""

    def int8_linear_loop(a: Any) -> None:
        num_rows, in_features, out_features, per_item = a[3], a[4], a[8], a[9]
        stride = 4 * out_features
        sums = np.empty(MAX_ROWS * COLUMNS, np.float32)
        out = sums.ctypes.data
        while True:
            item = next_item(a)
            if item >= a[1]:
                break
            first = per_item * item
            stop = min(first + per_item, out_features)
            row = 0
            while row < num_rows:
                rows = 1
                if num_rows - row >= 4 and MAX_ROWS >= 4:
                    rows = 4
                elif num_rows - row >= 2:
                    rows = 2
                x = a[2] + 4 * in_features * row
                for o in range(first, stop, COLUMNS):
                    w = a[5] + in_features * o
                    if row == 0:
                        for line in range(AHEAD, AHEAD + COLUMNS * in_features, CACHE_LINE):
                            prefetch(w + line)
                    last = stop - o - 1
                    if rows == 4 and MAX_ROWS >= 4:
                        int8_4(x, w, last, in_features, out)
                    elif rows == 2:
                        int8_2(x, w, last, in_features, out)
                    else:
                        int8_1(x, w, last, in_features, out)
                    columns = min(COLUMNS, last + 1)
                    _scale(sums, rows, columns, a[6] + 4 * o, a[7] + stride * row + 4 * o, stride)
                row += rows

    return Loop(loop(int8_linear_loop))
