"""The loop of `packed.packed_linear` in numba: every panel is read from memory once, and multiplies all rows."""

from __future__ import annotations

import functools
from typing import Any

from loramux_kernels.machine_numba import CACHE_LINE, inline, loop, next_item
from loramux_kernels.packed import PANEL
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import (
    PANEL_ROWS,
    packed_1,
    packed_2,
    packed_3,
    packed_4,
    packed_8,
    packed_12,
)

DEPTH = 2048  # inputs of one pass over a panel: 256 KiB of weights, which stay in the second cache for all rows
AHEAD = 2048  # bytes from what is multiplied to what is fetched, where rows are few


@inline
def _all_rows(x: int, num_rows: int, w: int, ahead: int, y: int, sizes: Any) -> None:
    """All rows by one panel; meanwhile `ahead` is fetched, a part with each tile of many rows."""
    row = 0
    while row + 12 <= num_rows and PANEL_ROWS == 12:
        packed_12(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)
        ahead += CACHE_LINE * sizes[2]
        row += 12
    while row + 8 <= num_rows and PANEL_ROWS == 12:
        packed_8(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)
        ahead += CACHE_LINE * sizes[2]
        row += 8
    while row + 4 <= num_rows and PANEL_ROWS == 12:
        packed_4(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)
        row += 4
    while row + 3 <= num_rows and PANEL_ROWS == 3:
        packed_3(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)
        row += 3
    while row + 2 <= num_rows:
        packed_2(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)
        row += 2
    if row < num_rows:
        packed_1(x + sizes[0] * row, w, ahead, y + sizes[1] * row, sizes)


@functools.cache
def packed_linear() -> Loop:
    """Arguments: x, its stride, num_rows, in_features, panels, y, its stride, out_features. Items: panels."""

    def packed_linear_loop(a: Any) -> None:
        num_rows, in_features, out_features = a[4], a[5], a[9]
        size = 4 * PANEL * in_features
        item = next_item(a)
        while item < a[1]:
            following = next_item(a)  # known now, so that it can be fetched
            first = PANEL * item
            width = min(PANEL, out_features - first)
            for k in range(0, in_features, DEPTH):
                w = a[6] + size * item + 4 * PANEL * k
                ahead = w + AHEAD if num_rows <= PANEL_ROWS // 2 else w + size * (following - item)
                sizes = (a[3], a[8], min(DEPTH, in_features - k), width, width if k else 0)
                _all_rows(a[2] + 4 * k, num_rows, w, ahead, a[7] + 4 * first, sizes)
            item = following

    return Loop(loop(packed_linear_loop))
