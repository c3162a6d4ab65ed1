"""The tiles that products are made of, written in vectors: a few rows by a few columns, held in registers.

Here are shrink and expand, the two of low-rank products; `panels_numba` has those of whole weights.

Every number of the result has one accumulator and one order of summation, which neither the tile's shape nor its
neighbours change: so a row is the same to the bit alone and in any batch. Addresses and strides are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _HAS_AVX512 else 8
MAX_ROWS = 4 if _HAS_AVX512 else 2  # of a tile: with 4 columns, the accumulators take half of the registers
COLUMNS = 4
WIDE = COLUMNS * LANES  # columns of an expand's tile

_FLOAT = ir.FloatType()
_BYTE = ir.IntType(8)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
ZEROS = ir.Constant(_VECTOR, None)
_BYTES = ir.VectorType(_BYTE, LANES)

Step = Callable[[Any, list[Any]], list[Any]]


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


def _shrink_tile(rows: int) -> Any:
    """out[row, column] = x[row] . a[column], for 4 columns, of which those after the `last` repeat it.

    `ahead` is where the next 4 rows lie that will be needed, of a or of x. Sizes: strides of x, a and out, and the
    length of a row.
    """

    @intrinsic
    def tile(_context: Any, x: Any, a: Any, last: Any, ahead: Any, out: Any, sizes: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            x, a, last, ahead, out, sizes = arguments
            x_stride, a_stride, out_stride, count = cgutils.unpack_tuple(builder, sizes)
            emit = Emitter(builder)
            x_rows = [emit.at(x, emit.int64(row), x_stride) for row in range(rows)]
            a_rows = [emit.at(a, emit.minimum(column, last), a_stride) for column in range(COLUMNS)]
            ahead_rows = [emit.at(ahead, emit.int64(row), a_stride) for row in range(COLUMNS)]

            def step(offset: Any, totals: list[Any], mask: Any = None) -> list[Any]:
                ours = [emit.load(builder.add(row, offset), mask) for row in a_rows]
                for row in ahead_rows:
                    emit.prefetch(builder.add(row, offset))
                theirs = [emit.load(builder.add(row, offset), mask) for row in x_rows]
                return [emit.fma(theirs[i // COLUMNS], ours[i % COLUMNS], total) for i, total in enumerate(totals)]

            nbytes, lanes = emit.int64(4 * LANES), emit.int64(LANES)
            num_whole, num_rest = builder.sdiv(count, lanes), builder.srem(count, lanes)
            totals = emit.repeat(num_whole, [ZEROS] * (rows * COLUMNS), lambda i, t: step(builder.mul(i, nbytes), t))
            end, mask = builder.mul(num_whole, nbytes), emit.first_lanes(num_rest)
            totals = emit.repeat(emit.minimum(1, num_rest), totals, lambda _i, t: step(end, t, mask))
            for row in range(rows):
                sums = emit.sums(totals[row * COLUMNS : (row + 1) * COLUMNS])
                address = emit.at(out, emit.int64(row), out_stride)
                builder.store(sums, emit.pointer(address, sums.type), align=4)
            return target.get_dummy_value()

        return types.void(x, a, last, ahead, out, sizes), generate

    return tile


def _expand_tile(rows: int, columns: int) -> Any:
    """y[row, :] += sum over j of s[row, j] * b[j, :], on `columns` vectors, or on the first `width` lanes of one.

    `ahead` is how much further on in `b` to prefetch; of y, the rows that follow are. Sizes: strides of s, b and y,
    and the rank.
    """

    @intrinsic
    def tile(_context: Any, s: Any, b: Any, width: Any, ahead: Any, y: Any, sizes: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            s, b, width, ahead, y, sizes = arguments
            s_stride, b_stride, y_stride, rank = cgutils.unpack_tuple(builder, sizes)
            emit = Emitter(builder)
            s_rows = [emit.at(s, emit.int64(row), s_stride) for row in range(rows)]
            offsets = [emit.int64(4 * LANES * column) for column in range(columns)]
            mask = emit.first_lanes(width) if columns == 1 else None

            def step(j: Any, totals: list[Any]) -> list[Any]:
                start = emit.at(b, j, b_stride)
                ours = [emit.load(builder.add(start, offset), mask) for offset in offsets]
                for offset in offsets:
                    emit.prefetch(builder.add(builder.add(start, offset), ahead))
                theirs = [emit.broadcast(emit.at(row, j, emit.int64(4))) for row in s_rows]
                return [emit.fma(theirs[i // columns], ours[i % columns], total) for i, total in enumerate(totals)]

            for row in range(rows, 2 * rows):
                for offset in offsets:
                    emit.prefetch(builder.add(emit.at(y, emit.int64(row), y_stride), offset))
            totals = emit.repeat(rank, [ZEROS] * (rows * columns), step)
            for i, total in enumerate(totals):
                row = emit.at(y, emit.int64(i // columns), y_stride)
                address = builder.add(row, offsets[i % columns])
                emit.store(builder.fadd(emit.load(address, mask), total), address, mask)
            return target.get_dummy_value()

        return types.void(s, b, width, ahead, y, sizes), generate

    return tile


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


shrink_4, shrink_3, shrink_2, shrink_1 = (_shrink_tile(rows) for rows in (4, 3, 2, 1))
expand_4, expand_3, expand_2, expand_1 = (_expand_tile(rows, COLUMNS) for rows in (4, 3, 2, 1))
expand_narrow_4, expand_narrow_2, expand_narrow_1 = (_expand_tile(rows, 1) for rows in (4, 2, 1))
