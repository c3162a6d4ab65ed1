"""The tiles that products are made of, written in vectors: a few rows by a few columns, held in registers.

Here are shrink and expand, the two of low-rank products; `panels_numba` has those of whole weights.

Every number of the result has one accumulator and one order of summation, which neither the tile's shape nor its
neighbours change: so a row is the same to the bit alone and in any batch. Addresses and strides are in bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _HAS_AVX512 else 8
MOST_ROWS = 4 if _HAS_AVX512 else 2  # of a tile: with 4 columns, accumulators take half of the registers
COLUMNS = 4
WIDE = COLUMNS * LANES  # columns of an expand's tile

ITEM_NBYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # what weights may be

_FLOAT = ir.FloatType()
_BYTE = ir.IntType(8)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
ZEROS = ir.Constant(_VECTOR, None)
_BYTES = ir.VectorType(_BYTE, LANES)

Step = Callable[[Any, list[Any]], list[Any]]
Tile = Callable[[int, Any, list[Any]], list[Any]]


class Emitter:
    """Writes the instructions of a tile."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def int64(self, value: int) -> Any:
        return ir.Constant(_INT64, value)

    def at(self, address: Any, index: Any, stride: Any) -> Any:
        return self.builder.add(address, self.builder.mul(index, stride))

    def minimum(self, constant: int, value: Any) -> Any:
        is_smaller = self.builder.icmp_signed("<", self.int64(constant), value)
        return self.builder.select(is_smaller, self.int64(constant), value)

    def pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, ir.PointerType(kind))

    def load(self, address: Any, mask: Any = None) -> Any:
        """The vector at an address; zeros, and nothing read, where the mask is off."""
        pointer = self.pointer(address, _VECTOR)
        if mask is None:
            return self.builder.load(pointer, align=4)
        function = self.declare(
            f"llvm.masked.load.v{LANES}f32.p0", _VECTOR, [ir.PointerType(_VECTOR), _INT32, _MASK, _VECTOR]
        )
        return self.builder.call(function, [pointer, ir.Constant(_INT32, 4), mask, ZEROS])

    def load_weights(self, item_type: str, address: Any, mask: Any = None) -> Any:
        """Numbers of a weight, of an ITEM_NBYTES type, as a vector of floats; zeros where the mask is off."""
        if item_type == "float32":
            return self.load(address, mask)
        item = ir.HalfType() if item_type == "float16" else ir.IntType(16)
        vector, suffix = ir.VectorType(item, LANES), "f16" if item_type == "float16" else "i16"
        pointer = self.pointer(address, vector)
        if mask is None:
            numbers = self.builder.load(pointer, align=2)
        else:
            kinds = [ir.PointerType(vector), _INT32, _MASK, vector]
            function = self.declare(f"llvm.masked.load.v{LANES}{suffix}.p0", vector, kinds)
            numbers = self.builder.call(function, [pointer, ir.Constant(_INT32, 2), mask, ir.Constant(vector, None)])
        if item_type == "float16":
            return self.builder.fpext(numbers, _VECTOR)
        wide = ir.VectorType(_INT32, LANES)  # a bfloat16 is the high half of a float32
        return self.builder.bitcast(
            self.builder.shl(self.builder.zext(numbers, wide), ir.Constant(wide, [16] * LANES)), _VECTOR
        )

    def load_int8(self, address: Any) -> Any:
        """The int8 numbers at an address as a vector of floats."""
        numbers = self.builder.load(self.pointer(address, _BYTES), align=1)
        return self.builder.sitofp(self.builder.sext(numbers, ir.VectorType(_INT32, LANES)), _VECTOR)

    def store(self, value: Any, address: Any, mask: Any = None) -> None:
        pointer = self.pointer(address, _VECTOR)
        if mask is None:
            self.builder.store(value, pointer, align=4)
            return
        function = self.declare(
            f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [_VECTOR, ir.PointerType(_VECTOR), _INT32, _MASK]
        )
        self.builder.call(function, [value, pointer, ir.Constant(_INT32, 4), mask])

    def declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), name)

    def broadcast(self, address: Any) -> Any:
        value = self.builder.load(self.pointer(address, _FLOAT), align=4)
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INT32, 0))
        return self.shuffle(one, one, [0] * LANES)

    def fma(self, x: Any, y: Any, total: Any) -> Any:
        function = self.declare(f"llvm.fma.v{LANES}f32", _VECTOR, [_VECTOR] * 3)
        return self.builder.call(function, [x, y, total])

    def prefetch(self, address: Any) -> None:
        line = ir.PointerType(_BYTE)
        function = self.declare("llvm.prefetch.p0", ir.VoidType(), [line, _INT32, _INT32, _INT32])
        read, keep, data = (ir.Constant(_INT32, value) for value in (0, 2, 1))  # into the second cache
        self.builder.call(function, [self.pointer(address, _BYTE), read, keep, data])

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes))

    def first_lanes(self, count: Any) -> Any:
        """The mask of the first `count` lanes."""
        counts = ir.VectorType(_INT64, LANES)
        one = self.builder.insert_element(ir.Constant(counts, ir.Undefined), count, ir.Constant(_INT32, 0))
        lanes = ir.Constant(counts, list(range(LANES)))
        return self.builder.icmp_signed("<", lanes, self.shuffle(one, one, [0] * LANES))

    def repeat(self, count: Any, totals: list[Any], step: Step) -> list[Any]:
        """Run `step(index, totals)` count times, which may be 0; the totals stay in registers."""
        builder = self.builder
        before, body, after = builder.block, builder.append_basic_block("tile"), builder.append_basic_block("tile.end")
        builder.cbranch(builder.icmp_signed(">", count, self.int64(0)), body, after)
        builder.position_at_end(body)
        index = builder.phi(_INT64)
        carried = [builder.phi(total.type) for total in totals]
        stepped = step(index, carried)
        following = builder.add(index, self.int64(1))
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        last = builder.block
        builder.position_at_end(after)
        for phi, first, following_value in zip(
            [index, *carried], [self.int64(0), *totals], [following, *stepped], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(following_value, last)
        results = [builder.phi(total.type) for total in totals]
        for result, first, value in zip(results, totals, stepped, strict=True):
            result.add_incoming(first, before)
            result.add_incoming(value, last)
        return results

    def in_tiles(self, most: int, num_rows: Any, places: list[Any], tile: Tile) -> None:
        """Run `tile(rows, index, places)`, which returns the places of the following rows, until all rows are done.

        Rows are shared out evenly, at most `most` to a tile: a small tile takes little less time than a large one.
        """
        builder = self.builder
        num_tiles = builder.sdiv(builder.add(num_rows, self.int64(most - 1)), self.int64(most))
        num_tiles = builder.select(builder.icmp_signed("<", num_tiles, self.int64(1)), self.int64(1), num_tiles)
        share, num_larger = builder.sdiv(num_rows, num_tiles), builder.srem(num_rows, num_tiles)
        num_smaller = builder.sub(num_tiles, num_larger)
        for rows in range(most, 0, -1):
            is_larger, is_smaller = (
                builder.icmp_signed("==", share, self.int64(of_share)) for of_share in (rows - 1, rows)
            )
            times = builder.select(is_smaller, num_smaller, builder.select(is_larger, num_larger, self.int64(0)))
            places = self.repeat(times, places, functools.partial(tile, rows))

    def sums(self, four: list[Any]) -> Any:
        """The sums of four vectors, as a vector of four: lanes are added in one fixed order."""
        halves = [self._interleaved(four[0], four[1], 1), self._interleaved(four[2], four[3], 1)]
        total = self._interleaved(halves[0], halves[1], 2)  # in every 4 lanes: one lane of each of the four
        width = LANES
        while width > COLUMNS:
            width //= 2
            low, high = (self.shuffle(total, total, list(range(at, at + width))) for at in (0, width))
            total = self.builder.fadd(low, high)
        return total

    def _interleaved(self, x: Any, y: Any, unit: int) -> Any:
        """In every 4 lanes, x's halves added and y's halves added, `unit` lanes at a time in turn."""
        low: list[int] = []
        high: list[int] = []
        for lane in range(0, LANES, 4):
            if unit == 1:
                low += [lane, LANES + lane, lane + 1, LANES + lane + 1]
                high += [lane + 2, LANES + lane + 2, lane + 3, LANES + lane + 3]
            else:
                low += [lane, lane + 1, LANES + lane, LANES + lane + 1]
                high += [lane + 2, lane + 3, LANES + lane + 2, LANES + lane + 3]
        return self.builder.fadd(self.shuffle(x, y, low), self.shuffle(x, y, high))


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


shrink_float32, shrink_float16, shrink_bfloat16 = (_shrink(item_type) for item_type in ITEM_NBYTES)
expand_float32, expand_float16, expand_bfloat16 = (_expand(item_type, COLUMNS) for item_type in ITEM_NBYTES)
narrow_float32, narrow_float16, narrow_bfloat16 = (_expand(item_type, 1) for item_type in ITEM_NBYTES)
