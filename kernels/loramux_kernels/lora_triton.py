"""The Triton form of the LoRA ops: kernels whose grid is the work of the batch, and their launchers.

No atomics and one block shape for decode and prefill: a row is summed in one order, whatever shares the batch.
Derivation, block sizes and what has run where: kernels/README.md.
"""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from loramux_kernels.segments import Segments
from loramux_kernels.slot_weights import SlotWeights

# Reasons are in kernels/README.md; none of these sizes has been measured on a device yet. BLOCK_M stays below 64 in
# every kernel, so that Hopper takes mma rather than wgmma; a dot whose left side sits in registers has one stage.
BLOCK_M: Final = 32
SHRINK: Final = {"BLOCK_M": BLOCK_M, "BLOCK_R": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
EXPAND: Final = {"BLOCK_M": BLOCK_M, "BLOCK_R": 16, "BLOCK_N": 128, "num_warps": 4, "num_stages": 1}
GATHER: Final = {"BLOCK_M": BLOCK_M, "BLOCK_R": 16, "num_warps": 4, "num_stages": 1}
ELEMENTS: Final = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _lora_shrink_kernel(
    x_ptr, out_ptr, table_ptr, work_ptr, num_slots, in_features, stride_xm, stride_om,
    ALIGNED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, BLOCK_R of its rank's columns.
    work = work_ptr + tl.program_id(0) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    rank = tl.load(table_ptr + 2 * num_slots + slot)
    if tl.program_id(1) * BLOCK_R >= rank:
        return
    a_ptr = tl.load(table_ptr + slot).to(tl.pointer_type(x_ptr.dtype.element_ty))
    if ALIGNED:
        a_ptr = tl.multiple_of(a_ptr, 16)

    m = tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    rows = (row0 + m).to(tl.int64)
    x_ptrs = x_ptr + rows[:, None] * stride_xm + k[None, :]
    a_ptrs = a_ptr + r[None, :].to(tl.int64) * in_features + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k0 in range(0, in_features, BLOCK_K):
        # [BLOCK_M, BLOCK_K] of x by [BLOCK_K, BLOCK_R] of A.T, both straight from memory
        x = tl.load(x_ptrs, mask=(m[:, None] < num_rows) & (k[None, :] < in_features - k0), other=0.0)
        a = tl.load(a_ptrs, mask=(r[None, :] < rank) & (k[:, None] < in_features - k0), other=0.0)
        acc = tl.dot(x, a, acc, input_precision="ieee")
        x_ptrs += BLOCK_K
        a_ptrs += BLOCK_K
    tl.store(out_ptr + rows[:, None] * stride_om + r[None, :], acc, mask=(m[:, None] < num_rows) & (r[None, :] < rank))


@triton.jit
def _lora_gather_kernel(
    ids_ptr, out_ptr, table_ptr, work_ptr, num_slots, in_features, stride_om, ELEMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    # The shrink of an embedding: a one-hot row picks one column of A. An id outside the vocabulary picks zeros.
    work = work_ptr + tl.program_id(0) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    rank = tl.load(table_ptr + 2 * num_slots + slot)
    if tl.program_id(1) * BLOCK_R >= rank:
        return
    a_ptr = tl.load(table_ptr + slot).to(tl.pointer_type(ELEMENT))

    m = tl.arange(0, BLOCK_M)
    r = (tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    rows = (row0 + m).to(tl.int64)
    ids = tl.load(ids_ptr + rows, mask=m < num_rows, other=-1)
    inside = (m[:, None] < num_rows) & (r[None, :] < rank)
    known = (ids[:, None] >= 0) & (ids[:, None] < in_features)
    picked = tl.load(a_ptr + r[None, :] * in_features + ids[:, None], mask=inside & known, other=0.0)
    tl.store(out_ptr + rows[:, None] * stride_om + r[None, :], picked.to(tl.float32), mask=inside)


@triton.jit
def _lora_expand_kernel(
    shrunk_ptr, y_ptr, table_ptr, work_ptr, num_slots, out_features, stride_sm, stride_ym, scale,
    ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, BLOCK_N output columns, the slot's whole rank and no more.
    work = work_ptr + tl.program_id(0) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    rank = tl.load(table_ptr + 2 * num_slots + slot)
    if rank == 0:
        return
    b_ptr = tl.load(table_ptr + num_slots + slot).to(tl.pointer_type(y_ptr.dtype.element_ty))
    if ALIGNED:
        b_ptr = tl.multiple_of(b_ptr, 16)
        rank = tl.multiple_of(rank, 8)

    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    rows = (row0 + m).to(tl.int64)
    shrunk_ptrs = shrunk_ptr + rows[:, None] * stride_sm + r[None, :]
    b_ptrs = b_ptr + n[None, :].to(tl.int64) * rank + r[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r0 in range(0, rank, BLOCK_R):
        # [BLOCK_M, BLOCK_R] float32 by [BLOCK_R, BLOCK_N] of B.T; 16-bit B is exact in tf32, the left side is split
        shrunk = tl.load(shrunk_ptrs, mask=(m[:, None] < num_rows) & (r[None, :] < rank - r0), other=0.0)
        b = tl.load(b_ptrs, mask=(n[None, :] < out_features) & (r[:, None] < rank - r0), other=0.0)
        acc = tl.dot(shrunk, b.to(tl.float32), acc, input_precision=PRECISION)
        shrunk_ptrs += BLOCK_R
        b_ptrs += BLOCK_R
    # y += scale * delta, rounded once
    y_ptrs = y_ptr + rows[:, None] * stride_ym + n[None, :]
    inside = (m[:, None] < num_rows) & (n[None, :] < out_features)
    y = tl.load(y_ptrs, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptrs, (y + scale * acc).to(y_ptr.dtype.element_ty), mask=inside)


def shrink(x: torch.Tensor, weights: SlotWeights, segments: Segments, out: torch.Tensor) -> None:
    """Launch the shrink; the contract is `lora.lora_shrink`'s."""
    work = segments.work(BLOCK_M, x.device)
    if not len(work) or not weights.max_rank:
        return
    _check_rows_are_dense(x, out)
    grid = (len(work), triton.cdiv(weights.max_rank, SHRINK["BLOCK_R"]))
    _lora_shrink_kernel[grid](
        x, out, weights.table(), work, weights.num_slots, weights.in_features, x.stride(0), out.stride(0),
        ALIGNED=weights.has_aligned_pairs, enable_fp_fusion=True, **SHRINK,
    )  # fmt: skip


def expand(shrunk: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor, scale: float = 1.0) -> None:
    """Launch the expand; the contract is `lora.lora_expand`'s."""
    work = segments.work(BLOCK_M, y.device)
    if not len(work) or not weights.max_rank:
        return
    _check_rows_are_dense(shrunk, y)
    grid = (len(work), triton.cdiv(weights.out_features, EXPAND["BLOCK_N"]))
    _lora_expand_kernel[grid](
        shrunk, y, weights.table(), work, weights.num_slots, weights.out_features, shrunk.stride(0), y.stride(0),
        float(scale), ALIGNED=weights.has_aligned_pairs and weights.has_even_ranks,
        PRECISION=expand_precision(y.dtype, is_amd=torch.version.hip is not None), enable_fp_fusion=True, **EXPAND,
    )  # fmt: skip


def linear(x: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor) -> None:
    """Launch both; the float32 rows between them are not cleared, for nothing outside a slot's rank is read."""
    shrunk = torch.empty(segments.num_rows, weights.max_rank, dtype=torch.float32, device=x.device)
    shrink(x, weights, segments, shrunk)
    expand(shrunk, weights, segments, y)


def embedding(token_ids: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor, scale: float) -> None:
    """Launch gather and expand; the contract is `lora.lora_embedding`'s."""
    shrunk = torch.empty(segments.num_rows, weights.max_rank, dtype=torch.float32, device=y.device)
    work = segments.work(BLOCK_M, y.device)
    if not len(work):
        return
    grid = (len(work), triton.cdiv(weights.max_rank, GATHER["BLOCK_R"]))
    _lora_gather_kernel[grid](
        token_ids.contiguous(), shrunk, weights.table(), work, weights.num_slots, weights.in_features,
        shrunk.stride(0), ELEMENT=ELEMENTS[weights.dtype], enable_fp_fusion=True, **GATHER,
    )  # fmt: skip
    expand(shrunk, weights, segments, y, scale)


def expand_precision(dtype: torch.dtype, *, is_amd: bool) -> str:
    """How the expand multiplies its float32 rows by B without rounding them to 16 bits.

    16-bit values are exact in tf32, so three tf32 products keep the rows' 24 bits; AMD multiplies float32 natively.
    """
    return "ieee" if is_amd or dtype == torch.float32 else "tf32x3"


def _check_rows_are_dense(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if tensor.stride(1) != 1:
            raise ValueError(f"the kernels read rows whose elements are adjacent, got strides {tensor.stride()}")
