"""What loops in numba need of the machine: memory by address, atomic counters, prefetching, and a vector exponential.

Numba compiles a loop to vector instructions only where nothing in it can raise and every call is inlined, so these are
intrinsics: a few LLVM instructions each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

# Sums may be reordered, so that they run in vectors; NaN and infinity keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}

CACHE_LINE = 64  # bytes

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)

inline = njit(fastmath=FAST_MATH, error_model="numpy", inline="always")


def loop(function: Callable[[Any], None]) -> Any:
    """Compile `function(arguments)` for `team.Loop`; the machine code is kept on disk where a folder can be written."""
    options: dict[str, Any] = {"fastmath": FAST_MATH, "error_model": "numpy"}
    signature = types.void(types.CPointer(types.int64))
    try:
        return cfunc(signature, cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to keep it in
        return cfunc(signature, **options)(function)


def float_bits(value: float) -> int:
    """The bits of a float32, to be handed over as an int64 argument and read with `bits_float`."""
    return int(struct.unpack("i", struct.pack("f", value))[0])


@intrinsic
def _float_pointer(_context: Any, address: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.PointerType(_FLOAT))

    return types.CPointer(types.float32)(address), generate


@intrinsic
def _int64_pointer(_context: Any, address: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.PointerType(_INT64))

    return types.CPointer(types.int64)(address), generate


@inline
def floats(address: int, count: int) -> Any:
    """The float32 array of `count` numbers at an address."""
    return carray(_float_pointer(address), (count,))


@inline
def ints(address: int, count: int) -> Any:
    """The int64 array of `count` numbers at an address."""
    return carray(_int64_pointer(address), (count,))


@intrinsic
def count_up(_context: Any, arguments: Any, _place: Any) -> Any:
    """Add one to the argument at a place, for all threads, and return what it was."""

    def generate(_target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(values[0], [values[1]]), ir.Constant(_INT64, 1), "seq_cst")

    return types.int64(arguments, types.int64), generate


@intrinsic
def count_at(_context: Any, arguments: Any, _place: Any) -> Any:
    """The argument at a place, which others count up; what they wrote before is seen after."""

    def generate(_target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.load_atomic(builder.gep(values[0], [values[1]]), "acquire", 8)

    return types.int64(arguments, types.int64), generate


@intrinsic
def call(_context: Any, function: Any, _arguments: Any) -> Any:
    """Call the loop whose machine code lies at an address, with its arguments at another."""

    def generate(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = ir.PointerType(_INT64)
        kind = ir.PointerType(ir.FunctionType(ir.VoidType(), [pointer]))
        builder.call(builder.inttoptr(values[0], kind), [builder.inttoptr(values[1], pointer)])
        return target.get_dummy_value()

    return types.void(function, types.int64), generate


@intrinsic
def ask(_context: Any, function: Any) -> Any:
    """What the function `int f()` at an address returns."""

    def generate(_target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = ir.PointerType(ir.FunctionType(_INT32, []))
        return builder.sext(builder.call(builder.inttoptr(values[0], kind), []), _INT64)

    return types.int64(function), generate


@inline
def next_item(arguments: Any) -> Any:
    """Take the next item: the counter at the head of the arguments."""
    return count_up(arguments, 0)


@intrinsic
def bits_float(_context: Any, bits: Any) -> Any:
    """The float32 whose bits are the low half of an int64 argument."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], _INT32), _FLOAT)

    return types.float32(bits), generate


@intrinsic
def prefetch(_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be valid."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        line = ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [line, _INT32, _INT32, _INT32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [line], kind)
        read, keep, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], line), read, keep, data])
        return target.get_dummy_value()

    return types.void(address), generate


# exp(r) on |r| <= ln(2)/2: the polynomial of Cephes' expf (S. Moshier), exact to about 1 unit in the last place.
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_SMALLEST, _LARGEST = -87.0, 88.0  # where float32 would leave its normal numbers


@intrinsic
def exp(_context: Any, x: Any) -> Any:
    """e**x of a float32, NaN for NaN; x is held to -87 .. 88."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        def constant(value: float) -> Any:
            return ir.Constant(_FLOAT, float(np.float32(value)))

        x = arguments[0]
        x = builder.select(builder.fcmp_ordered("<", x, constant(_SMALLEST)), constant(_SMALLEST), x)
        x = builder.select(builder.fcmp_ordered(">", x, constant(_LARGEST)), constant(_LARGEST), x)
        rint = builder.module.declare_intrinsic("llvm.rint", [_FLOAT])
        n = builder.call(rint, [builder.fmul(x, constant(1 / np.log(2)))])
        r = builder.fma(n, constant(-_LN2_HIGH), x)
        r = builder.fma(n, constant(-_LN2_LOW), r)
        p = constant(_EXP_POLYNOMIAL[0])
        for coefficient in _EXP_POLYNOMIAL[1:]:
            p = builder.fma(p, r, constant(coefficient))
        y = builder.fadd(builder.fma(p, builder.fmul(r, r), r), constant(1.0))
        exponent = builder.add(builder.fptosi(n, _INT32), ir.Constant(_INT32, 127))
        return builder.fmul(y, builder.bitcast(builder.shl(exponent, ir.Constant(_INT32, 23)), _FLOAT))

    return types.float32(x), generate
