"""Emitter: the instructions that tiles are written in, and how wide a vector is here. Addresses are in bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if HAS_AVX512 else 8
COLUMNS = 4  # whose sums are added up together

ITEM_NBYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # what weights, keys and values may be
LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127}  # finite numbers

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


def _all_lanes(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


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
        self._store(value, _VECTOR, "f32", 4, address, mask)

    def store_as(self, item_type: str, value: Any, address: Any, mask: Any) -> None:
        """Write floats as numbers of an ITEM_NBYTES type: the nearest ones, and finite where the floats are."""
        if item_type == "float32":
            self.store(value, address, mask)
            return
        builder = self.builder
        most = LARGEST[item_type]
        size = builder.call(self.declare(f"llvm.fabs.v{LANES}f32", _VECTOR, [_VECTOR]), [value])
        is_beyond = builder.and_(
            builder.fcmp_ordered(">", size, _all_lanes(most)), builder.fcmp_ordered("<", size, _all_lanes(math.inf))
        )
        signed = self.declare(f"llvm.copysign.v{LANES}f32", _VECTOR, [_VECTOR] * 2)
        value = builder.select(is_beyond, builder.call(signed, [_all_lanes(most), value]), value)
        if item_type == "float16":
            kind = ir.VectorType(ir.HalfType(), LANES)
            self._store(builder.fptrunc(value, kind), kind, "f16", 2, address, mask)
            return
        wide, kind = ir.VectorType(_INT32, LANES), ir.VectorType(ir.IntType(16), LANES)

        def all_of(number: int) -> Any:
            return ir.Constant(wide, [number] * LANES)

        bits = builder.bitcast(value, wide)  # of which the high half is kept, rounded to even
        is_odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
        rounded = builder.lshr(builder.add(bits, builder.add(is_odd, all_of(0x7FFF))), all_of(16))
        halves = builder.select(builder.fcmp_unordered("uno", value, value), all_of(0x7FC0), rounded)
        self._store(builder.trunc(halves, kind), kind, "i16", 2, address, mask)

    def _store(self, value: Any, kind: Any, suffix: str, nbytes: int, address: Any, mask: Any) -> None:
        pointer = self.pointer(address, kind)
        if mask is None:
            self.builder.store(value, pointer, align=nbytes)
            return
        kinds = [kind, ir.PointerType(kind), _INT32, _MASK]
        function = self.declare(f"llvm.masked.store.v{LANES}{suffix}.p0", ir.VoidType(), kinds)
        self.builder.call(function, [value, pointer, ir.Constant(_INT32, nbytes), mask])

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
