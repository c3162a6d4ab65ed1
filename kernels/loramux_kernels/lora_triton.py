"""The Triton form of the LoRA ops: kernels whose grid is the work of the batch, and their launchers.

No atomics, and one shape of tiles for decode and prefill: a row is summed in one order, whatever shares the batch. A
launch depends on the shapes of modules and batch and on the highest rank allowed; never on what is in the slots.
Derivation, block sizes and what has run where: kernels/README.md.
"""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
import triton
import triton.language as tl

from loramux_kernels.hopper import check_dot
from loramux_kernels.segments import PIECE_ROWS, AnySegments
from loramux_kernels.slot_weights import SlotWeights

Ints = tuple[int, ...]

LAUNCH: Final = {"num_warps": 4, "num_stages": 1}  # stages of loops that do not say their own
COLUMNS: Final = 128  # a program has a multiple of as many outputs
NUM_PROGRAMS: Final = 256  # that a launch aims at
MAX_FUSED_RANK: Final = 64  # beyond, no program could keep its rows of the intermediate in registers


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program of the fused kernel takes at a time of pairs of rank up to `rank`.

    First `block_k` of in_features, in a pipeline of `stages`; then `block_n` of out_features.
    """

    rank: int
    block_k: int
    stages: int
    block_n: int

    def __post_init__(self) -> None:
        check_dot(f"x by A in {self}", block_m=PIECE_ROWS, num_stages=self.stages, left_in_registers=False)
        check_dot(f"the intermediate by B in {self}", block_m=PIECE_ROWS, num_stages=LAUNCH["num_stages"])
        if COLUMNS % self.block_n:
            raise ValueError(f"block_n={self.block_n} must divide the columns of a program, {COLUMNS}")

    def constants(self) -> tuple[int, int, int, int]:
        """As the kernels take them."""
        return (self.rank, self.block_k, self.stages, self.block_n)


# By bytes of an element. Reasons are in kernels/README.md; none of these sizes has been measured on a device yet.
TILES: Final = {
    2: (Tiles(rank=16, block_k=128, stages=6, block_n=128), Tiles(rank=64, block_k=64, stages=6, block_n=32)),
    4: (Tiles(rank=16, block_k=128, stages=4, block_n=128), Tiles(rank=64, block_k=64, stages=4, block_n=16)),
}
EXPAND: Final = {"BLOCK_M": PIECE_ROWS, "BLOCK_R": 32, "BLOCK_N": 128}
check_dot("the expand", block_m=PIECE_ROWS, num_stages=LAUNCH["num_stages"])


@triton.jit
def _multiply_by_a(
    x_ptr, a_ptr, rows, is_row, r0, rank, in_features, stride_xm, BLOCK_M: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    # float32 [BLOCK_M, tile's rank]: x by the columns of A.T from r0 on, zero where there are none
    r = r0 + tl.arange(0, TILE[0])
    k = tl.arange(0, TILE[1])
    x_ptrs = x_ptr + rows[:, None] * stride_xm + k[None, :]
    a_ptrs = a_ptr + r[None, :] * in_features + k[:, None]
    acc = tl.zeros((BLOCK_M, TILE[0]), dtype=tl.float32)
    for k0 in tl.range(0, in_features, TILE[1], num_stages=TILE[2]):
        # [BLOCK_M, block_k] of x by [block_k, rank] of A.T, both straight from memory
        x = tl.load(x_ptrs, mask=is_row[:, None] & (k[None, :] < in_features - k0), other=0.0)
        a = tl.load(a_ptrs, mask=(r[None, :] < rank) & (k[:, None] < in_features - k0), other=0.0)
        acc = tl.dot(x, a, acc, input_precision="ieee")
        x_ptrs += TILE[1]
        a_ptrs += TILE[1]
    return acc


@triton.jit
def _load_b(b_ptr, r, rank, n, n_stop, out_features):
    # [r, n] of B.T, zero outside; an offset within B fits 32 bits (SlotWeights refuses larger ones)
    inside = (r[:, None] < rank) & (n[None, :] < n_stop)
    return tl.load(b_ptr + r[:, None] * out_features + n[None, :], mask=inside, other=0.0)


@triton.jit
def _add_to_y(y_ptr, rows, is_row, n, out_features, stride_ym, delta):
    # y += delta, rounded once
    y_ptrs = y_ptr + rows[:, None] * stride_ym + n[None, :]
    inside = is_row[:, None] & (n[None, :] < out_features)
    y = tl.load(y_ptrs, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptrs, (y + delta).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _find_span(tables, firsts, widths, columns):
    # This program's member: its index, table, first column of y, width; and the columns of it that are this program's.
    span = tl.program_id(0)
    member, begin, next_begin = 0, 0, 0
    table_ptr, first, out_features = tables[0], firsts[0], widths[0]
    for j in tl.static_range(1, len(tables)):
        next_begin += tl.cdiv(widths[j - 1], columns)
        is_later = span >= next_begin
        member = tl.where(is_later, j, member)
        begin = tl.where(is_later, next_begin, begin)
        table_ptr = tl.where(is_later, tables[j], table_ptr)
        first = tl.where(is_later, firsts[j], first)
        out_features = tl.where(is_later, widths[j], out_features)
    n_first = (span - begin) * columns
    return member, table_ptr, first, out_features, n_first, tl.minimum(n_first + columns, out_features)


@triton.jit
def _lora_fused_kernel(
    x_ptr, y_ptr, tables, firsts, widths, work_ptr, stride_table, in_features, stride_xm, stride_ym, columns,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, `columns` outputs of one member. It multiplies its rows by the whole
    # of A: programs of the same rows are neighbours, so that all but the first find x and A in the cache.
    work = work_ptr + tl.program_id(1) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    _member, table_ptr, first, out_features, n_first, n_stop = _find_span(tables, firsts, widths, columns)
    rank = tl.load(table_ptr + 2 * stride_table + slot)
    if (num_rows == 0) | (rank == 0):
        return
    element = y_ptr.dtype.element_ty
    a_ptr = tl.multiple_of(tl.load(table_ptr + slot).to(tl.pointer_type(element)), 16)
    b_ptr = tl.multiple_of(tl.load(table_ptr + stride_table + slot).to(tl.pointer_type(element)), 16)
    m = tl.arange(0, BLOCK_M)
    rows, is_row = (row0 + m).to(tl.int64), m < num_rows
    for i in tl.static_range(len(TILES)):
        if (rank <= TILES[i][0]) & (rank > (TILES[i - 1][0] if i > 0 else 0)):
            r = tl.arange(0, TILES[i][0])
            n = n_first + tl.arange(0, TILES[i][3])
            # B is on its way while x is multiplied by A, and then always one tile ahead
            b = _load_b(b_ptr, r, rank, n, n_stop, out_features)
            shrunk = _multiply_by_a(x_ptr, a_ptr, rows, is_row, 0, rank, in_features, stride_xm, BLOCK_M, TILES[i])
            for n0 in range(n_first, n_stop, TILES[i][3]):
                # [BLOCK_M, rank] float32 by [rank, block_n] of B.T
                n = n0 + tl.arange(0, TILES[i][3])
                next_b = _load_b(b_ptr, r, rank, n + TILES[i][3], n_stop, out_features)
                delta = tl.dot(shrunk, b.to(tl.float32), input_precision=PRECISION)
                _add_to_y(y_ptr + first, rows, is_row, n, out_features, stride_ym, delta)
                b = next_b


@triton.jit
def _lora_shrink_kernel(
    x_ptr, out_ptr, tables, work_ptr, stride_table, in_features, stride_xm, stride_om, max_rank,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, one block of one member's rank.
    work = work_ptr + tl.program_id(2) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    member, r0 = tl.program_id(1), tl.program_id(0) * TILE[0]
    table_ptr = tables[0]
    for j in tl.static_range(1, len(tables)):
        table_ptr = tl.where(member == j, tables[j], table_ptr)
    rank = tl.load(table_ptr + 2 * stride_table + slot)
    if (num_rows == 0) | (r0 >= rank):
        return
    a_ptr = tl.multiple_of(tl.load(table_ptr + slot).to(tl.pointer_type(x_ptr.dtype.element_ty)), 16)
    m = tl.arange(0, BLOCK_M)
    rows, is_row = (row0 + m).to(tl.int64), m < num_rows
    acc = _multiply_by_a(x_ptr, a_ptr, rows, is_row, r0, rank, in_features, stride_xm, BLOCK_M, TILE)
    r = r0 + tl.arange(0, TILE[0])
    out_ptrs = out_ptr + rows[:, None] * stride_om + member * max_rank + r[None, :]
    tl.store(out_ptrs, acc, mask=is_row[:, None] & (r[None, :] < rank))


@triton.jit
def _lora_expand_kernel(
    left_ptr, y_ptr, tables, firsts, widths, work_ptr, stride_table, in_features, stride_lm, stride_ym, columns,
    max_rank, scale, LEFT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, `columns` outputs of one member, the slot's whole rank and no more.
    # LEFT is "shrunk": left_ptr has float32 rows of max_rank columns per member. Or "token": it has ids, each of which
    # picks a column of A, the product of A and a one-hot row; an id outside the vocabulary picks zeros.
    work = work_ptr + tl.program_id(1) * 3
    slot, row0, num_rows = tl.load(work), tl.load(work + 1), tl.load(work + 2)
    member, table_ptr, first, out_features, n_first, n_stop = _find_span(tables, firsts, widths, columns)
    rank = tl.load(table_ptr + 2 * stride_table + slot)
    if (num_rows == 0) | (rank == 0):
        return
    element = y_ptr.dtype.element_ty
    a_ptr = tl.multiple_of(tl.load(table_ptr + slot).to(tl.pointer_type(element)), 16)
    b_ptr = tl.multiple_of(tl.load(table_ptr + stride_table + slot).to(tl.pointer_type(element)), 16)
    m = tl.arange(0, BLOCK_M)
    rows, is_row = (row0 + m).to(tl.int64), m < num_rows
    if LEFT == "token":
        ids = tl.load(left_ptr + rows * stride_lm, mask=is_row, other=-1)
        is_row_to_read = (ids >= 0) & (ids < in_features)
        left_ptrs = a_ptr + ids[:, None]
        stride_lr = in_features
    else:
        is_row_to_read = is_row
        left_ptrs = left_ptr + rows[:, None] * stride_lm + member * max_rank
        stride_lr = 1
    for n0 in range(n_first, n_stop, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        delta = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for r0 in range(0, rank, BLOCK_R):
            # [BLOCK_M, BLOCK_R] by [BLOCK_R, BLOCK_N] of B.T, as float32
            r = (r0 + tl.arange(0, BLOCK_R)).to(tl.int32)
            inside = is_row_to_read[:, None] & (r[None, :] < rank)
            left = tl.load(left_ptrs + r[None, :] * stride_lr, mask=inside, other=0.0)
            b = _load_b(b_ptr, r, rank, n, n_stop, out_features)
            delta = tl.dot(left.to(tl.float32), b.to(tl.float32), delta, input_precision=PRECISION)
        _add_to_y(y_ptr + first, rows, is_row, n, out_features, stride_ym, scale * delta)


def group(x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor) -> None:
    """Launch `lora.lora_group`: one kernel, or shrink and expand where a slot's rank may exceed MAX_FUSED_RANK."""
    work = segments.work(x.device)
    max_rank = max(weights.max_rank for weights, _first in members)
    if not len(work):
        return
    if max_rank > MAX_FUSED_RANK:
        shrunk = torch.empty(segments.num_rows, len(members) * max_rank, dtype=torch.float32, device=x.device)
        _launch_shrink(x, [weights for weights, _first in members], work, shrunk, max_rank)
        _launch_expand("shrunk", shrunk, members, work, y, max_rank=max_rank)
        return
    _check_rows_are_dense(x, y)
    weights = members[0][0]
    tables, firsts, widths = _arguments(members)
    columns, num_spans = spans(widths, len(work))
    _lora_fused_kernel[num_spans, len(work)](
        x, y, tables, firsts, widths, work, tables[0].stride(0), weights.in_features, x.stride(0), y.stride(0), columns,
        PRECISION=_precision("x", y.dtype), BLOCK_M=PIECE_ROWS, TILES=fused_tiles(x.element_size(), max_rank),
        enable_fp_fusion=True, **LAUNCH,
    )  # fmt: skip


def shrink(x: torch.Tensor, weights: SlotWeights, segments: AnySegments, out: torch.Tensor) -> None:
    """Launch `lora.lora_shrink`."""
    if len(work := segments.work(x.device)):
        _launch_shrink(x, [weights], work, out, weights.max_rank)


def expand(shrunk: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor) -> None:
    """Launch `lora.lora_expand`."""
    if len(work := segments.work(y.device)):
        _launch_expand("shrunk", shrunk, ((weights, 0),), work, y, max_rank=weights.max_rank)


def embedding(
    token_ids: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor, scale: float
) -> None:
    """Launch `lora.lora_embedding`: the expand, whose rows are columns of A."""
    if len(work := segments.work(y.device)):
        _launch_expand("token", token_ids[:, None], ((weights, 0),), work, y, max_rank=weights.max_rank, scale=scale)


def _launch_shrink(
    x: torch.Tensor, members: Sequence[SlotWeights], work: torch.Tensor, out: torch.Tensor, max_rank: int
) -> None:
    _check_rows_are_dense(x, out)
    tile = TILES[x.element_size()][-1]
    tables = tuple(weights.table() for weights in members)
    _lora_shrink_kernel[triton.cdiv(max_rank, tile.rank), len(members), len(work)](
        x, out, tables, work, tables[0].stride(0), members[0].in_features, x.stride(0), out.stride(0), max_rank,
        BLOCK_M=PIECE_ROWS, TILE=tile.constants(), enable_fp_fusion=True, **LAUNCH,
    )  # fmt: skip


def _launch_expand(
    left: Literal["shrunk", "token"],
    rows: torch.Tensor,
    members: Sequence[tuple[SlotWeights, int]],
    work: torch.Tensor,
    y: torch.Tensor,
    *,
    max_rank: int,
    scale: float = 1.0,
) -> None:
    _check_rows_are_dense(rows, y)
    weights = members[0][0]
    tables, firsts, widths = _arguments(members)
    columns, num_spans = spans(widths, len(work))
    _lora_expand_kernel[num_spans, len(work)](
        rows, y, tables, firsts, widths, work, tables[0].stride(0), weights.in_features, rows.stride(0), y.stride(0),
        columns, max_rank, float(scale), LEFT=left, PRECISION=_precision(left, y.dtype), enable_fp_fusion=True,
        **EXPAND, **LAUNCH,
    )  # fmt: skip


def spans(widths: Sequence[int], num_pieces: int) -> tuple[int, int]:
    """(columns of a program, programs per piece) of a launch: about NUM_PROGRAMS in all, if there is as much work."""
    num_tiles = sum(triton.cdiv(width, COLUMNS) for width in widths)
    columns = COLUMNS * max(1, min(num_tiles * num_pieces // NUM_PROGRAMS, triton.cdiv(max(widths), COLUMNS)))
    return columns, sum(triton.cdiv(width, columns) for width in widths)


def fused_tiles(element_size: int, max_rank: int) -> tuple[tuple[int, int, int, int], ...]:
    """The tiles that slots of rank up to `max_rank` take, in the order of their ranks."""
    tiles = TILES[element_size]
    num_tiles = 1 + sum(tile.rank < max_rank for tile in tiles[:-1])
    return tuple(tile.constants() for tile in tiles[:num_tiles])


def precision(left: Literal["x", "shrunk", "token"], dtype: torch.dtype, *, is_amd: bool) -> str:
    """How a product by B keeps 24 bits of its float32 rows.

    16-bit values are exact in tf32: one product suffices for columns of A, and three keep the bits of a shrunk row.
    AMD multiplies float32 natively.
    """
    if is_amd or dtype == torch.float32:
        return "ieee"
    return "tf32" if left == "token" else "tf32x3"


def _precision(left: Literal["x", "shrunk", "token"], dtype: torch.dtype) -> str:
    return precision(left, dtype, is_amd=torch.version.hip is not None)


def _arguments(members: Sequence[tuple[SlotWeights, int]]) -> tuple[tuple[torch.Tensor, ...], Ints, Ints]:
    """Every member's table, first column of y, and width.

    Raises RuntimeError for 16-bit pairs beside float32 rows, which only the forms of a CPU read.
    """
    if any(any(weights.item_types) for weights, _first in members):
        raise RuntimeError("Triton's kernels read pairs of the rows' dtype, and some here are of 16 bits")
    return (
        tuple(weights.table() for weights, _first in members),
        tuple(first for _weights, first in members),
        tuple(weights.out_features for weights, _first in members),
    )


def _check_rows_are_dense(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if tensor.stride(1) != 1:
            raise ValueError(f"the kernels read rows whose elements are adjacent, got strides {tensor.stride()}")
