"""The loops of `layers` in numba: one pass over memory each, rows as items."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from loramux_kernels.backend import ITEM_TYPES
from loramux_kernels.machine_numba import bits_float, exp, floats, ints, loop, next_item
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import keep, rotate

ONE = np.float32(1)
ZERO = np.float32(0)


@functools.cache
def rms_norm() -> Loop:
    """Arguments: x, weight, out, hidden size, bits of eps. Items: rows."""

    def rms_norm_loop(a: Any) -> None:
        hidden = a[5]
        weight = floats(a[3], hidden)
        eps = bits_float(a[6])
        while True:
            row = next_item(a)
            if row >= a[1]:
                break
            x = floats(a[2] + 4 * hidden * row, hidden)
            out = floats(a[4] + 4 * hidden * row, hidden)
            total = ZERO
            for i in range(hidden):
                total += x[i] * x[i]
            scale = ONE / np.float32(math.sqrt(total / np.float32(hidden) + eps))
            for i in range(hidden):
                out[i] = weight[i] * (x[i] * scale)

    return Loop(loop(rms_norm_loop))


@functools.cache
def add_rows() -> Loop:
    """Arguments: x, bytes from row to row of it (0: it is one row), y, width. Items: rows."""

    def add_rows_loop(a: Any) -> None:
        width = a[5]
        while True:
            row = next_item(a)
            if row >= a[1]:
                break
            x = floats(a[2] + a[3] * row, width)
            y = floats(a[4] + 4 * width * row, width)
            for i in range(width):
                y[i] += x[i]

    return Loop(loop(add_rows_loop))


@functools.cache
def silu_mul() -> Loop:
    """Arguments: gate_up, out, width. Items: rows."""

    def silu_mul_loop(a: Any) -> None:
        width = a[4]
        while True:
            row = next_item(a)
            if row >= a[1]:
                break
            gate = floats(a[2] + 8 * width * row, width)
            up = floats(a[2] + 8 * width * row + 4 * width, width)
            out = floats(a[3] + 4 * width * row, width)
            for i in range(width):
                out[i] = gate[i] / (ONE + exp(-gate[i])) * up[i]

    return Loop(loop(silu_mul_loop))


@functools.cache
def rotate_and_store(item_type: int) -> Loop:
    """A loop for a cache of a type of ITEM_TYPES.

    Arguments: qkv, cos, sin, kv_slots, keys, values, num_heads, num_kv_heads, head_dim. Items: rows.
    """
    nbytes = ITEM_TYPES[item_type].itemsize

    def rotate_and_store_loop(a: Any) -> None:
        num_heads, num_kv_heads, dim = a[8], a[9], a[10]
        half = dim // 2
        width = (num_heads + 2 * num_kv_heads) * dim
        kv_width = num_kv_heads * dim
        slots = ints(a[5], a[1])
        while True:
            row = next_item(a)
            if row >= a[1]:
                break
            start = a[2] + 4 * width * row
            for head in range(num_heads + num_kv_heads):
                low = start + 4 * dim * head
                rotate(low, low + 4 * half, a[3] + 4 * dim * row, a[4] + 4 * dim * row, half)
            key, place = start + 4 * num_heads * dim, nbytes * kv_width * slots[row]
            keep(item_type, key, kv_width, a[6] + place)
            keep(item_type, key + 4 * kv_width, kv_width, a[7] + place)

    return Loop(loop(rotate_and_store_loop))
