"""The loop of `packed.packed_linear` and `int8.int8_linear`: a panel is read once, and multiplies all rows.

Beside it the one that lays weights out in panels.

A tile is some rows by the columns of a panel, three quarters of the registers. Each of its numbers is one sum in the
order of the inputs, whatever rows are beside it.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from loramux_kernels.emitter_numba import LANES, Emitter
from loramux_kernels.machine_numba import CACHE_LINE, floats, inline, loop, next_item
from loramux_kernels.packed import PANEL
from loramux_kernels.team import Loop

MOST_ROWS = 12 if LANES == 16 else 3  # of a tile
FEW_ROWS = MOST_ROWS // 2  # of a tile that is done before much could be fetched
VECTORS = tuple(range(0, PANEL, LANES))  # the first column of each
DEPTH = 2048  # inputs of one pass over a panel: 256 KiB of float32 weights, which stay in the second cache for all rows
AHEAD = 4096  # bytes from what is multiplied to what is fetched, where rows are few


def _panel_product(weight_nbytes: int) -> Any:
    """y = x . w, or y += where the sums so far are in it, of all rows of x and the columns of one panel.

    Of float32 weights, or of int8. While it multiplies, `ahead` is fetched: two lines with each input by the tiles of
    few rows, one by those of many, whose next goes on where the last one ended. Sizes: strides of x and y, how many
    inputs, how many columns y has, and of how many of them the sums so far are in y.
    """
    step_nbytes = weight_nbytes * PANEL

    @intrinsic
    def product(_context: Any, x: Any, num_rows: Any, w: Any, ahead: Any, y: Any, sizes: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            x, num_rows, w, ahead, y, sizes = arguments
            x_stride, y_stride, count, width, num_begun = cgutils.unpack_tuple(builder, sizes)
            emit = Emitter(builder)
            written, begun = (
                [emit.first_lanes(builder.sub(columns, emit.int64(first))) for first in VECTORS]
                for columns in (width, num_begun)
            )

            def weights(k: Any) -> list[Any]:
                start = emit.at(w, k, emit.int64(step_nbytes))
                load = emit.load if weight_nbytes == 4 else emit.load_int8
                return [load(builder.add(start, emit.int64(weight_nbytes * first))) for first in VECTORS]

            def tile(rows: int, _index: Any, places: list[Any]) -> list[Any]:
                x, y, ahead = places
                x_rows = [emit.at(x, emit.int64(row), x_stride) for row in range(rows)]
                results = [
                    builder.add(emit.at(y, emit.int64(row), y_stride), emit.int64(4 * first))
                    for row in range(rows)
                    for first in VECTORS
                ]
                fetched = step_nbytes if rows < FEW_ROWS else min(step_nbytes, CACHE_LINE)

                def step(k: Any, totals: list[Any]) -> list[Any]:
                    ours = weights(k)
                    for line in range(0, fetched, CACHE_LINE):
                        emit.prefetch(builder.add(emit.at(ahead, k, emit.int64(fetched)), emit.int64(line)))
                    theirs = [emit.broadcast(emit.at(row, k, emit.int64(4))) for row in x_rows]
                    return [
                        emit.fma(theirs[i // len(VECTORS)], ours[i % len(VECTORS)], total)
                        for i, total in enumerate(totals)
                    ]

                totals = [emit.load(place, begun[i % len(VECTORS)]) for i, place in enumerate(results)]
                for i, total in enumerate(emit.repeat(count, totals, step)):
                    emit.store(total, results[i], written[i % len(VECTORS)])
                further = emit.int64(0) if rows < FEW_ROWS else emit.at(emit.int64(0), count, emit.int64(fetched))
                return [
                    emit.at(x, emit.int64(rows), x_stride),
                    emit.at(y, emit.int64(rows), y_stride),
                    builder.add(ahead, further),
                ]

            emit.in_tiles(MOST_ROWS, num_rows, [x, y, ahead], tile)
            return target.get_dummy_value()

        return types.void(x, num_rows, w, ahead, y, sizes), generate

    return product


float_product, int8_product = _panel_product(4), _panel_product(1)


@inline
def _scale(scales: int, num_rows: int, width: int, y: int, stride: int) -> None:
    """Multiply the columns of y, each by its scale."""
    scale = floats(scales, width)
    for row in range(num_rows):
        out = floats(y + stride * row, width)
        for column in range(width):
            out[column] *= scale[column]


@functools.cache
def panel_linear(weight_nbytes: int) -> Loop:
    """A loop for weights of float32 (4 bytes) or int8 (1). Items: panels.

    Arguments: x, its stride, num_rows, in_features, panels, y, its stride, out_features, scales of int8 weights.
    """

    def panel_linear_loop(a: Any) -> None:
        num_rows, in_features, out_features = a[4], a[5], a[9]
        size = weight_nbytes * PANEL * in_features
        item = next_item(a)
        while item < a[1]:
            following = next_item(a)  # known now, so that it can be fetched
            first = PANEL * item
            width = min(PANEL, out_features - first)
            y = a[7] + 4 * first
            for k in range(0, in_features, DEPTH):
                w = a[6] + size * item + weight_nbytes * PANEL * k
                ahead = w + AHEAD if num_rows <= FEW_ROWS else w + size * (following - item)
                sizes = (a[3], a[8], min(DEPTH, in_features - k), width, width if k else 0)
                if weight_nbytes == 4:
                    float_product(a[2] + 4 * k, num_rows, w, ahead, y, sizes)
                else:
                    int8_product(a[2] + 4 * k, num_rows, w, ahead, y, sizes)
            if weight_nbytes == 1:
                _scale(a[10] + 4 * first, num_rows, width, y, a[8])
            item = following

    return Loop(loop(panel_linear_loop))


@functools.cache
def pack_float32() -> Loop:
    """A loop that lays a weight out in panels. Items: panels.

    Arguments: weight [out_features, in_features], panels, in_features, out_features.
    """

    def pack_float32_loop(a: Any) -> None:
        in_features, out_features = a[4], a[5]
        while True:
            item = next_item(a)
            if item >= a[1]:
                break
            first = PANEL * item
            width = min(PANEL, out_features - first)
            rows = floats(a[2] + 4 * in_features * first, in_features * width)
            panel = floats(a[3] + 4 * PANEL * in_features * item, in_features * PANEL)
            for start in range(0, in_features, CACHE_LINE // 4):  # of each row one line
                for j in range(width):
                    for k in range(start, min(start + CACHE_LINE // 4, in_features)):
                        panel[PANEL * k + j] = rows[in_features * j + k]

    return Loop(loop(pack_float32_loop))
