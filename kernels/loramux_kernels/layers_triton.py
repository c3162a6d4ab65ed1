"""The Triton form of the small ops between a layer's products: one launch each, sums float32, a result rounded once."""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

# None of these sizes has been measured on a device yet: a program has work for its threads, four elements or more each.
NORM: Final = {"num_warps": 8, "num_stages": 1}
GATE: Final = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
ROTATE: Final = {"HEADS": 8, "num_warps": 4, "num_stages": 1}


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, hidden, stride_xm, eps, BLOCK: tl.constexpr):
    # One program: one row.
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < hidden
    x = tl.load(x_ptr + row * stride_xm + i, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    scaled = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / hidden + eps))
    tl.store(out_ptr + row * hidden + i, (weight * scaled).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, width, stride_xm, BLOCK: tl.constexpr):
    # One program: BLOCK columns of one row.
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    gate = tl.load(gate_up_ptr + row * stride_xm + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride_xm + width + i, mask=inside, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # of no gate too large
    sigmoid = tl.where(gate < 0, small, 1.0) / (1.0 + small)
    tl.store(out_ptr + row * width + i, (gate * sigmoid * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=("slots_ptr",))
def _rotate_and_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, slots_ptr, keys_ptr, values_ptr, stride_xm,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    # One program: HEADS heads of one row; query heads come first, then those of keys, then those of values.
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    is_query, is_value = head < NUM_HEADS, head >= NUM_HEADS + NUM_KV_HEADS
    inside = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & (i < HALF)
    x_ptrs = qkv_ptr + row * stride_xm + head * (2 * HALF) + i
    low, high = tl.load(x_ptrs, mask=inside), tl.load(x_ptrs + HALF, mask=inside)
    angle = row * (2 * HALF) + i
    cos_low, cos_high = tl.load(cos_ptr + angle, mask=i < HALF), tl.load(cos_ptr + angle + HALF, mask=i < HALF)
    sin_low, sin_high = tl.load(sin_ptr + angle, mask=i < HALF), tl.load(sin_ptr + angle + HALF, mask=i < HALF)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    low = tl.where(is_value, low, (wide_low * cos_low - wide_high * sin_low).to(low.dtype))
    high = tl.where(is_value, high, (wide_high * cos_high + wide_low * sin_high).to(high.dtype))
    tl.store(x_ptrs, low, mask=inside & ~is_value)
    tl.store(x_ptrs + HALF, high, mask=inside & ~is_value)
    # [HEADS, BLOCK] of each half to the cache
    place = (tl.load(slots_ptr + row).to(tl.int64) * NUM_KV_HEADS + head - NUM_HEADS) * (2 * HALF) + i
    is_key = ~is_query & ~is_value
    tl.store(keys_ptr + place, low, mask=inside & is_key)
    tl.store(keys_ptr + place + HALF, high, mask=inside & is_key)
    place -= NUM_KV_HEADS * 2 * HALF
    tl.store(values_ptr + place, low, mask=inside & is_value)
    tl.store(values_ptr + place + HALF, high, mask=inside & is_value)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Launch the kernel; the contract is `layers.rms_norm`'s."""
    num_rows, hidden = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _rms_norm_kernel[(num_rows,)](x, weight, out, hidden, x.stride(0), eps, BLOCK=block, enable_fp_fusion=True, **NORM)
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Launch the kernel; the contract is `layers.silu_mul`'s."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    grid = (num_rows, triton.cdiv(width, GATE["BLOCK"]))
    _silu_mul_kernel[grid](gate_up, out, width, gate_up.stride(0), enable_fp_fusion=True, **GATE)
    return out


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv_slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
) -> None:
    """Launch the kernel; the contract is `layers.rotate_and_store`'s."""
    num_kv_heads, dim = keys.shape[-2:]
    grid = (len(qkv), triton.cdiv(num_heads + 2 * num_kv_heads, ROTATE["HEADS"]))
    _rotate_and_store_kernel[grid](
        qkv, cos, sin, kv_slots, keys, values, qkv.stride(0), NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads,
        HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2), enable_fp_fusion=True, **ROTATE,
    )  # fmt: skip
