"""The peers' batched LoRA, made again from its public description, to measure ours against.

A wrapped module has one or more slices, projections of one input. Its weights lie stacked, every slot with the server's
highest rank. A step sorts its rows by slot on the device; then each module takes three launches: a float32 buffer is
cleared, `shrink` adds to it by atomics, from programs that split the inputs between them, `expand` adds to the output.
Both grids have room for all rows in every slot. Block sizes: costs.peers_scheme.
"""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from costs.peers_scheme import BLOCK_INPUTS, BLOCK_OUTPUTS, BLOCK_RANK, BLOCK_ROWS, SPLITS

STAGES: Final = {"_peers_shrink_kernel": 2, "_peers_expand_kernel": 1}
"""Of their loops. The left side of the expand's product is in registers, which Hopper takes unpipelined alone."""


@dataclass(frozen=True, slots=True)
class PeerMapping:
    """Which rows each slot has: `rows` by slot, of which slot s has `counts[s]` from `starts[s]` on; int32."""

    rows: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    is_decode: bool

    @classmethod
    def of(cls, slots: torch.Tensor, num_slots: int, *, is_decode: bool) -> PeerMapping:
        """slots: int64 [num_rows] on the device, num_slots for a base row."""
        counts = torch.bincount(slots, minlength=num_slots + 1)[:num_slots]
        starts = counts.cumsum(0) - counts
        rows = torch.argsort(slots, stable=True)
        return cls(rows.int(), counts.int(), starts.int(), is_decode)


class PeerModule:
    """The stacked weights of a module: A [slices, slots, max_rank, in], B of each slice [slots, width, max_rank]."""

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.in_features = in_features
        self.max_width = max(widths)
        self.num_slots = num_slots
        self.max_rank = max_rank
        firsts = [sum(widths[:index]) for index in range(len(widths))]
        self.a = torch.zeros(len(widths), num_slots, max_rank, in_features, dtype=dtype, device=device)
        self.b = [torch.zeros(num_slots, width, max_rank, dtype=dtype, device=device) for width in widths]
        pointers = [b.data_ptr() for b in self.b]
        self.slices = torch.tensor([pointers, widths, firsts], dtype=torch.int64, device=device)

    def set(self, slot: int, slice_index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """Copy a pair, A [rank, in] and B [width, rank], into a slot that was clear."""
        rank = len(a)
        self.a[slice_index, slot, :rank] = a
        self.b[slice_index][slot, :, :rank] = b


def add_deltas(x: torch.Tensor, module: PeerModule, mapping: PeerMapping, y: torch.Tensor) -> None:
    """Add every row's delta: x [num_rows, in], y [num_rows, all widths side by side], both dense."""
    num_slices, num_rows, rank = len(module.b), len(x), module.max_rank
    buffer = torch.zeros(num_slices, num_rows, rank, dtype=torch.float32, device=x.device)
    row_blocks = triton.cdiv(num_rows, BLOCK_ROWS)
    splits = SPLITS["decode" if mapping.is_decode else "prefill"]
    _peers_shrink_kernel[row_blocks * triton.cdiv(rank, BLOCK_RANK) * splits, num_slices, module.num_slots](
        x, module.a, buffer, mapping.rows, mapping.counts, mapping.starts, num_rows, module.in_features,
        module.num_slots, RANK=rank, SPLITS=splits, BLOCK_M=BLOCK_ROWS, BLOCK_R=BLOCK_RANK, BLOCK_K=BLOCK_INPUTS,
        num_warps=4, num_stages=STAGES["_peers_shrink_kernel"], enable_fp_fusion=True,
    )  # fmt: skip
    _peers_expand_kernel[row_blocks * triton.cdiv(module.max_width, BLOCK_OUTPUTS), num_slices, module.num_slots](
        buffer, module.slices, y, mapping.rows, mapping.counts, mapping.starts, num_rows, y.stride(0), num_slices,
        RANK=rank, BLOCKS_N=triton.cdiv(module.max_width, BLOCK_OUTPUTS), BLOCK_M=BLOCK_ROWS, BLOCK_R=BLOCK_RANK,
        BLOCK_N=BLOCK_OUTPUTS, num_warps=4, num_stages=STAGES["_peers_expand_kernel"], enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit
def _peers_shrink_kernel(
    x_ptr, a_ptr, buffer_ptr, rows_ptr, counts_ptr, starts_ptr, num_rows, in_features, num_slots,
    RANK: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_M rows of one slot, BLOCK_R ranks of one slice, every SPLITS-th block of the inputs.
    split = tl.program_id(0) % SPLITS
    tile = tl.program_id(0) // SPLITS
    ranks: tl.constexpr = (RANK + BLOCK_R - 1) // BLOCK_R
    part = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(2).to(tl.int64)
    count = tl.load(counts_ptr + slot)
    m = tile // ranks * BLOCK_M + tl.arange(0, BLOCK_M)
    if tile // ranks * BLOCK_M >= count:
        return
    r = tile % ranks * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = tl.load(rows_ptr + tl.load(starts_ptr + slot) + m, mask=m < count, other=0).to(tl.int64)
    a_ptr += (part * num_slots + slot) * RANK * in_features
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k0 in range(split * BLOCK_K, in_features, SPLITS * BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        inside = k < in_features
        x = tl.load(
            x_ptr + rows[:, None] * in_features + k[None, :], mask=(m[:, None] < count) & inside[None, :], other=0.0
        )
        a_ptrs = a_ptr + r[None, :] * in_features + k[:, None]
        a = tl.load(a_ptrs, mask=(r[None, :] < RANK) & inside[:, None], other=0.0)
        acc = tl.dot(x, a, acc, input_precision="ieee")
    # a program whose inputs lie beyond the last block adds zeros, as the others add their sums
    target = buffer_ptr + (part * num_rows + rows[:, None]) * RANK + r[None, :]
    tl.atomic_add(target, acc, mask=(m[:, None] < count) & (r[None, :] < RANK), sem="relaxed")


@triton.jit
def _peers_expand_kernel(
    buffer_ptr, slices_ptr, y_ptr, rows_ptr, counts_ptr, starts_ptr, num_rows, stride_ym, num_slices,
    RANK: tl.constexpr, BLOCKS_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK_M rows of one slot, BLOCK_N outputs of one slice, the whole padded rank.
    n0 = tl.program_id(0) % BLOCKS_N * BLOCK_N
    m0 = tl.program_id(0) // BLOCKS_N * BLOCK_M
    part = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(2).to(tl.int64)
    count = tl.load(counts_ptr + slot)
    width = tl.load(slices_ptr + num_slices + part)
    if (m0 >= count) | (n0 >= width):
        return
    first = tl.load(slices_ptr + 2 * num_slices + part)
    b_ptr = tl.load(slices_ptr + part).to(tl.pointer_type(y_ptr.dtype.element_ty)) + slot * width * RANK
    m = m0 + tl.arange(0, BLOCK_M)
    n = n0 + tl.arange(0, BLOCK_N)
    rows = tl.load(rows_ptr + tl.load(starts_ptr + slot) + m, mask=m < count, other=0).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r0 in range(0, RANK, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        shrunk = tl.load(
            buffer_ptr + (part * num_rows + rows[:, None]) * RANK + r[None, :],
            mask=(m[:, None] < count) & (r[None, :] < RANK),
            other=0.0,
        )
        b = tl.load(b_ptr + n[None, :] * RANK + r[:, None], mask=(n[None, :] < width) & (r[:, None] < RANK), other=0.0)
        acc = tl.dot(shrunk.to(b.dtype), b, acc, input_precision="ieee")
    target = y_ptr + rows[:, None] * stride_ym + first + n[None, :]
    inside = (m[:, None] < count) & (n[None, :] < width)
    y = tl.load(target, mask=inside, other=0.0)
    tl.store(target, (y.to(tl.float32) + acc).to(y.dtype), mask=inside)
