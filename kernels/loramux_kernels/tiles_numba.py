"""The tiles that products are made of, written in vectors: a few rows by a few columns, held in registers.

Here are shrink and expand, the two of low-rank products and of attention; `panels_numba` has those of whole weights.
Beside them two that write: rotated pairs, and keys and values as the KV cache keeps them.

Every number of the result has one accumulator and one order of summation, which neither the tile's shape nor its
neighbours change: so a row is the same to the bit alone and in any batch. Addresses and strides are in bytes.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from loramux_kernels.emitter_numba import COLUMNS, HAS_AVX512, ITEM_NBYTES, LANES, ZEROS, Emitter
from loramux_kernels.machine_numba import inline

MOST_ROWS = 4 if HAS_AVX512 else 2  # of a tile: with 4 columns, accumulators take half of the registers
WIDE = COLUMNS * LANES  # columns of an expand's tile


def _shrink(item_type: str) -> Any:
    """out[row, column] = x[row] . a[column] of all rows, for 4 columns, of which those after the `last` repeat it.

    a: numbers of a type of ITEM_NBYTES. `ahead` is where the next 4 rows of a lie that will be needed; they are fetched
    by the first tile, rows of x by the others. Sizes: strides of x, a and out, and the length of a row.
    """
    nbytes = ITEM_NBYTES[item_type]

    @intrinsic
    def shrink(_context: Any, x: Any, num_rows: Any, a: Any, last: Any, ahead: Any, out: Any, sizes: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            x, num_rows, a, last, ahead, out, sizes = arguments
            x_stride, a_stride, out_stride, count = cgutils.unpack_tuple(builder, sizes)
            emit = Emitter(builder)
            a_rows = [emit.at(a, emit.minimum(column, last), a_stride) for column in range(COLUMNS)]
            num_whole, num_rest = builder.sdiv(count, emit.int64(LANES)), builder.srem(count, emit.int64(LANES))
            rest = emit.first_lanes(num_rest)

            def tile(rows: int, _index: Any, places: list[Any]) -> list[Any]:
                x, out, ahead = places
                x_rows = [emit.at(x, emit.int64(row), x_stride) for row in range(rows)]
                ahead_rows = [emit.at(ahead, emit.int64(row), a_stride) for row in range(COLUMNS)]

                def step(index: Any, totals: list[Any], mask: Any = None) -> list[Any]:
                    offset = builder.mul(index, emit.int64(nbytes * LANES))
                    ours = [emit.load_weights(item_type, builder.add(row, offset), mask) for row in a_rows]
                    for row in ahead_rows:
                        emit.prefetch(builder.add(row, offset))
                    theirs = [emit.load(emit.at(row, index, emit.int64(4 * LANES)), mask) for row in x_rows]
                    return [emit.fma(theirs[i // COLUMNS], ours[i % COLUMNS], total) for i, total in enumerate(totals)]

                totals = emit.repeat(num_whole, [ZEROS] * (rows * COLUMNS), step)
                totals = emit.repeat(emit.minimum(1, num_rest), totals, lambda _i, t: step(num_whole, t, rest))
                for row in range(rows):
                    sums = emit.sums(totals[row * COLUMNS : (row + 1) * COLUMNS])
                    address = emit.at(out, emit.int64(row), out_stride)
                    builder.store(sums, emit.pointer(address, sums.type), align=4)
                x, out = emit.at(x, emit.int64(rows), x_stride), emit.at(out, emit.int64(rows), out_stride)
                return [x, out, emit.at(x, emit.int64(rows), x_stride)]

            emit.in_tiles(MOST_ROWS, num_rows, [x, out, ahead], tile)
            return target.get_dummy_value()

        return types.void(x, num_rows, a, last, ahead, out, sizes), generate

    return shrink


def _expand(item_type: str, columns: int) -> Any:
    """y[row, :] += sum over j of s[row, j] * b[j, :] of all rows, on `columns` vectors, or the first lanes of one.

    b: numbers of a type of ITEM_NBYTES; width: how many lanes, where it is one vector. `ahead` is how much further on
    in `b` the first tile is to fetch; of y, the rows that follow are. Sizes: strides of s, b and y, and the rank.
    """
    nbytes = ITEM_NBYTES[item_type]

    @intrinsic
    def expand(_context: Any, s: Any, num_rows: Any, b: Any, width: Any, ahead: Any, y: Any, sizes: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            s, num_rows, b, width, ahead, y, sizes = arguments
            s_stride, b_stride, y_stride, rank = cgutils.unpack_tuple(builder, sizes)
            emit = Emitter(builder)
            starts = [emit.int64(LANES * nbytes * column) for column in range(columns)]
            offsets = [emit.int64(LANES * 4 * column) for column in range(columns)]
            mask = emit.first_lanes(width) if columns == 1 else None

            def tile(rows: int, _index: Any, places: list[Any]) -> list[Any]:
                s, y, ahead = places
                s_rows = [emit.at(s, emit.int64(row), s_stride) for row in range(rows)]

                def step(j: Any, totals: list[Any]) -> list[Any]:
                    row_of_b = emit.at(b, j, b_stride)
                    ours = [emit.load_weights(item_type, builder.add(row_of_b, start), mask) for start in starts]
                    for start in starts:
                        emit.prefetch(builder.add(builder.add(row_of_b, start), ahead))
                    theirs = [emit.broadcast(emit.at(row, j, emit.int64(4))) for row in s_rows]
                    return [emit.fma(theirs[i // columns], ours[i % columns], total) for i, total in enumerate(totals)]

                for row in range(rows, 2 * rows):
                    for offset in offsets:
                        emit.prefetch(builder.add(emit.at(y, emit.int64(row), y_stride), offset))
                totals = emit.repeat(rank, [ZEROS] * (rows * columns), step)
                for i, total in enumerate(totals):
                    address = builder.add(emit.at(y, emit.int64(i // columns), y_stride), offsets[i % columns])
                    emit.store(builder.fadd(emit.load(address, mask), total), address, mask)
                return [
                    emit.at(s, emit.int64(rows), s_stride),
                    emit.at(y, emit.int64(rows), y_stride),
                    emit.int64(0),
                ]

            emit.in_tiles(MOST_ROWS, num_rows, [s, y, ahead], tile)
            return target.get_dummy_value()

        return types.void(s, num_rows, b, width, ahead, y, sizes), generate

    return expand


def _keep(item_type: str) -> Any:
    """out[i] = x[i] for i < count, rounded to the nearest number of the type, which a finite one stays: no infinity."""
    nbytes = ITEM_NBYTES[item_type]

    @intrinsic
    def keep(_context: Any, x: Any, count: Any, out: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            x, count, out = arguments
            emit = Emitter(builder)
            num_whole, num_rest = builder.sdiv(count, emit.int64(LANES)), builder.srem(count, emit.int64(LANES))

            def step(index: Any, totals: list[Any], mask: Any = None) -> list[Any]:
                value = emit.load(emit.at(x, index, emit.int64(4 * LANES)), mask)
                emit.store_as(item_type, value, emit.at(out, index, emit.int64(nbytes * LANES)), mask)
                return totals

            emit.repeat(num_whole, [], step)
            rest = emit.first_lanes(num_rest)
            emit.repeat(emit.minimum(1, num_rest), [], lambda _i, totals: step(num_whole, totals, rest))
            return target.get_dummy_value()

        return types.void(x, count, out), generate

    return keep


@intrinsic
def rotate(_context: Any, low: Any, high: Any, cos: Any, sin: Any, half: Any) -> Any:
    """Rotate the pairs (low[i], high[i]), i < half, in place, each number by its own cosine and sine.

    cos, sin: addresses of those of low; those of high follow them.
    """

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        low, high, cos, sin, half = arguments
        emit = Emitter(builder)
        further = builder.mul(half, emit.int64(4))

        def step(offset: Any, mask: Any = None) -> None:
            places = [builder.add(address, offset) for address in (low, high)]
            x, y = (emit.load(place, mask) for place in places)
            cosines, sines = (
                [emit.load(builder.add(start, offset), mask) for start in (angles, builder.add(angles, further))]
                for angles in (cos, sin)
            )
            rotated = [
                builder.fsub(builder.fmul(x, cosines[0]), builder.fmul(y, sines[0])),
                builder.fadd(builder.fmul(y, cosines[1]), builder.fmul(x, sines[1])),
            ]
            for value, place in zip(rotated, places, strict=True):
                emit.store(value, place, mask)

        def whole(i: Any, totals: list[Any]) -> list[Any]:
            step(builder.mul(i, emit.int64(4 * LANES)))
            return totals

        def rest(_i: Any, totals: list[Any]) -> list[Any]:
            step(builder.mul(num_whole, emit.int64(4 * LANES)), emit.first_lanes(num_rest))
            return totals

        num_whole, num_rest = builder.sdiv(half, emit.int64(LANES)), builder.srem(half, emit.int64(LANES))
        emit.repeat(num_whole, [], whole)
        emit.repeat(emit.minimum(1, num_rest), [], rest)
        return target.get_dummy_value()

    return types.void(low, high, cos, sin, half), generate


_shrink_float32, _shrink_float16, _shrink_bfloat16 = (_shrink(name) for name in ITEM_NBYTES)
_expand_float32, _expand_float16, _expand_bfloat16 = (_expand(name, COLUMNS) for name in ITEM_NBYTES)
_narrow_float32, _narrow_float16, _narrow_bfloat16 = (_expand(name, 1) for name in ITEM_NBYTES)
_keep_float32, _keep_float16, _keep_bfloat16 = (_keep(name) for name in ITEM_NBYTES)


@inline
def nbytes_of(item_type: int) -> int:
    """Of one number of a type, by its place in ITEM_TYPES: float32, or one of 16 bits."""
    return 4 if item_type == 0 else 2


@inline
def shrink(item_type: int, x: int, num_rows: int, a: int, last: int, ahead: int, out: int, sizes: Any) -> None:
    """A tile of 4 columns by all rows; see `_shrink`."""
    if item_type == 0:
        _shrink_float32(x, num_rows, a, last, ahead, out, sizes)
    elif item_type == 1:
        _shrink_float16(x, num_rows, a, last, ahead, out, sizes)
    else:
        _shrink_bfloat16(x, num_rows, a, last, ahead, out, sizes)


@inline
def expand(item_type: int, s: int, num_rows: int, b: int, ahead: int, y: int, sizes: Any) -> None:
    """Tiles of WIDE columns by all rows; see `_expand`."""
    if item_type == 0:
        _expand_float32(s, num_rows, b, 0, ahead, y, sizes)
    elif item_type == 1:
        _expand_float16(s, num_rows, b, 0, ahead, y, sizes)
    else:
        _expand_bfloat16(s, num_rows, b, 0, ahead, y, sizes)


@inline
def narrow_expand(item_type: int, s: int, num_rows: int, b: int, width: int, ahead: int, y: int, sizes: Any) -> None:
    """Tiles of at most LANES columns, of which there are `width`, by all rows; see `_expand`."""
    if item_type == 0:
        _narrow_float32(s, num_rows, b, width, ahead, y, sizes)
    elif item_type == 1:
        _narrow_float16(s, num_rows, b, width, ahead, y, sizes)
    else:
        _narrow_bfloat16(s, num_rows, b, width, ahead, y, sizes)


@inline
def keep(item_type: int, x: int, count: int, out: int) -> None:
    """Write so many floats as numbers of a type; see `_keep`."""
    if item_type == 0:
        _keep_float32(x, count, out)
    elif item_type == 1:
        _keep_float16(x, count, out)
    else:
        _keep_bfloat16(x, count, out)
