"""The Triton form of the LoRA ops: kernels whose grid is the work of the batch, and their launchers.

A row is summed in one order, whatever shares the batch: atomics count programs, they add no data. A launch depends on
the shapes of modules and batch and on the highest rank allowed; never on what is in the slots.
Derivation, block sizes and what has run where: kernels/README.md.
"""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
import triton
import triton.language as tl

from loramux_kernels.lora_tiles import LAUNCH, precision, spans, splits, tiles_up_to
from loramux_kernels.segments import NUM_LAUNCH_COUNTERS, PIECE_ROWS, AnySegments
from loramux_kernels.slot_weights import SlotWeights

Ints = tuple[int, ...]

COUNTING: Final = {
    "NUM_LAUNCH_COUNTERS": NUM_LAUNCH_COUNTERS,
    "CLEARED": 128,  # counters at a time
    "SUMS": 8,  # of splits, on their way together
}
OF_THE_BATCH: Final = ("num_pieces", "num_spans", "num_sums", "inputs")  # what is compiled does not depend on these


@triton.jit
def _fits(rank, i: tl.constexpr, TILES: tl.constexpr):
    # Whether the tile is the one for so many rows of A
    is_above = rank > (TILES[i - 1][0] if i > 0 else 0)
    if i == len(TILES) - 1:
        return is_above
    return is_above & (rank <= TILES[i][0])


@triton.jit
def _multiply_by_a(
    x_ptr, a_ptr, rows, is_row, r, rank, k_first, k_stop, split, in_features, stride_xm,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # float32 [BLOCK_M, tile's rank]: x by the columns r of A.T from input k_first to k_stop, zero where there are none.
    # Every `split` inputs are a sum of their own: one program for all of them has the bits of one program for each.
    k = tl.arange(0, TILE[1])
    x_ptrs = x_ptr + rows[:, None] * stride_xm + (k_first + k)[None, :]
    a_ptrs = a_ptr + r[None, :] * in_features + (k_first + k)[:, None]
    total = tl.zeros((BLOCK_M, TILE[0]), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, TILE[0]), dtype=tl.float32)
    for k0 in tl.range(k_first, k_stop, TILE[1], num_stages=TILE[2]):
        # [BLOCK_M, block_k] of x by [block_k, rank] of A.T, both straight from memory
        x = tl.load(x_ptrs, mask=is_row[:, None] & (k[None, :] < in_features - k0), other=0.0)
        a = tl.load(a_ptrs, mask=(r[None, :] < rank) & (k[:, None] < in_features - k0), other=0.0)
        acc = tl.dot(x, a, acc, input_precision="ieee")
        is_last_of_split = (k0 + TILE[1]) % split == 0
        total = tl.where(is_last_of_split, total + acc, total)
        acc = tl.where(is_last_of_split, 0.0, acc)
        x_ptrs += TILE[1]
        a_ptrs += TILE[1]
    return total + acc


@triton.jit
def _shrink(
    x_ptr, a_ptr, out_ptrs, rows, is_row, r0, rank, k_first, k_stop, split, in_features, stride_xm,
    BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # Write the sums of the columns of A.T from r0 on, as many as the highest tile has, by the tile that they fit;
    # out_ptrs: [BLOCK_M]
    for i in tl.static_range(len(TILES)):
        if _fits(rank - r0, i, TILES):
            r = r0 + tl.arange(0, TILES[i][0])
            total = _multiply_by_a(
                x_ptr, a_ptr, rows, is_row, r, rank, k_first, k_stop, split, in_features, stride_xm, BLOCK_M, TILES[i]
            )  # fmt: skip
            tl.store(out_ptrs[:, None] + r[None, :], total, mask=is_row[:, None] & (r[None, :] < rank))


@triton.jit
def _load_left(left_ptrs, stride_lr, is_left, r0, rank, num_sums, stride_sums, SUMS: tl.constexpr, TILE: tl.constexpr):
    # float32 [rows, tile's rank]: the sums of the splits of in_features in their order, SUMS on their way together
    r = r0 + tl.arange(0, TILE[0])
    left_ptrs = left_ptrs[:, None] + r[None, :] * stride_lr
    inside = is_left[:, None] & (r[None, :] < rank)
    num_inside = tl.where(inside, num_sums, 0)
    left = tl.zeros(inside.shape, dtype=tl.float32)
    for first in range(0, num_sums, SUMS):
        for i in tl.static_range(SUMS):
            one = tl.load(left_ptrs + (first + i) * stride_sums, mask=num_inside > first + i, other=0.0)
            left += one.to(tl.float32)
    return left


@triton.jit
def _load_b(b_ptr, r0, n0, rank, n_stop, out_features, TILE: tl.constexpr):
    # [tile's rank, block_n] of B.T, zero outside; an offset within B fits 32 bits (SlotWeights refuses larger ones)
    r, n = r0 + tl.arange(0, TILE[0]), n0 + tl.arange(0, TILE[3])
    inside = (r[:, None] < rank) & (n[None, :] < n_stop)
    return tl.load(b_ptr + r[:, None] * out_features + n[None, :], mask=inside, other=0.0)


@triton.jit
def _expand(
    left_ptrs, stride_lr, is_left, num_sums, stride_sums, b_ptr, b, y_ptr, rows, is_row, rank, n_first, n_stop,
    out_features, stride_ym, scale,
    PRECISION: tl.constexpr, SUMS: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # y[:, n_first : n_stop] += scale * left @ B.T, rounded once; left_ptrs: [BLOCK_M]. b is the first tile of B.T, and
    # from then on B is one tile ahead; so is left where the rank has more than one.
    left = _load_left(left_ptrs, stride_lr, is_left, 0, rank, num_sums, stride_sums, SUMS, TILE)
    for n0 in range(n_first, n_stop, TILE[3]):
        n = n0 + tl.arange(0, TILE[3])
        y_ptrs = y_ptr + rows[:, None] * stride_ym + n[None, :]
        is_output = is_row[:, None] & (n[None, :] < n_stop)
        y = tl.load(y_ptrs, mask=is_output, other=0.0)
        delta = tl.zeros((BLOCK_M, TILE[3]), dtype=tl.float32)
        for r0 in range(0, rank, TILE[0]):
            # [BLOCK_M, tile's rank] float32 by [tile's rank, block_n] of B.T
            is_last = r0 + TILE[0] >= rank
            next_r0, next_n0 = tl.where(is_last, 0, r0 + TILE[0]), tl.where(is_last, n0 + TILE[3], n0)
            next_b = _load_b(b_ptr, next_r0, next_n0, rank, n_stop, out_features, TILE)
            delta = tl.dot(left, b.to(tl.float32), delta, input_precision=PRECISION)
            b = next_b
            if rank > TILE[0]:
                left = _load_left(left_ptrs, stride_lr, is_left, next_r0, rank, num_sums, stride_sums, SUMS, TILE)
        tl.store(y_ptrs, (y.to(tl.float32) + scale * delta).to(y_ptr.dtype.element_ty), mask=is_output)


@triton.jit
def _wait_for(counter_ptr, number):
    # What the programs counted have written is seen from here on.
    counted = tl.atomic_add(counter_ptr, 0, sem="acquire")
    while counted < number:
        counted = tl.atomic_add(counter_ptr, 0, sem="acquire")


@triton.jit
def _find_member(tables, member):
    table_ptr = tables[0]
    for j in tl.static_range(1, len(tables)):
        table_ptr = tl.where(member == j, tables[j], table_ptr)
    return table_ptr


@triton.jit
def _find_span(firsts, widths, columns, span):
    # A span's member, that one's first column of y and width, and the columns of it that are the span's.
    member, begin, next_begin = 0, 0, 0
    first, out_features = firsts[0], widths[0]
    for j in tl.static_range(1, len(firsts)):
        next_begin += tl.cdiv(widths[j - 1], columns)
        is_later = span >= next_begin
        member = tl.where(is_later, j, member)
        begin = tl.where(is_later, next_begin, begin)
        first = tl.where(is_later, firsts[j], first)
        out_features = tl.where(is_later, widths[j], out_features)
    n_first = (span - begin) * columns
    return member, first, out_features, n_first, tl.minimum(n_first + columns, out_features)


@triton.jit
def _load_piece(work_ptr, piece):
    work = work_ptr + piece * 3
    return tl.load(work), tl.load(work + 1).to(tl.int64), tl.load(work + 2)


@triton.jit
def _load_address(entry_ptr, element: tl.constexpr):
    return tl.multiple_of(tl.load(entry_ptr).to(tl.pointer_type(element)), 16)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def _lora_fused_kernel(
    x_ptr, y_ptr, sums_ptr, tables, firsts, widths, work_ptr, counters_ptr, stride_table, in_features, stride_xm,
    stride_ym, num_pieces, num_spans, columns, num_sums, inputs, split, max_rank,
    PRECISION: tl.constexpr, SUMS: tl.constexpr, NUM_LAUNCH_COUNTERS: tl.constexpr, CLEARED: tl.constexpr,
    BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # Programs are numbered as they start. The first ones shrink: one piece of rows, one member, `inputs` of
    # in_features, one block of the rank; they write sums [num_sums, pieces, BLOCK_M, members * max_rank]. The others
    # expand: one piece, a span of columns; they wait for the piece's sums, whose programs have all started before.
    element = y_ptr.dtype.element_ty
    m = tl.arange(0, BLOCK_M)
    ready_ptr = counters_ptr + NUM_LAUNCH_COUNTERS
    num_blocks = tl.cdiv(max_rank, TILES[-1][0])
    num_shrinks = num_sums * len(tables) * num_blocks  # of a piece
    stride_sums = num_pieces * BLOCK_M * len(tables) * max_rank
    program = tl.atomic_add(counters_ptr, 1, sem="relaxed")
    if program < num_pieces * num_shrinks:
        piece = program // num_shrinks
        index = program % num_shrinks // num_blocks
        r0 = program % num_blocks * TILES[-1][0]
        member, part = index // num_sums, index % num_sums
        slot, row0, num_rows = _load_piece(work_ptr, piece)
        if num_rows > 0:
            k_first = tl.multiple_of(part * inputs, TILES[0][1])
            table_ptr = _find_member(tables, member)
            rank = tl.load(table_ptr + 2 * stride_table + slot)
            a_ptr = _load_address(table_ptr + slot, element)
            out_ptrs = sums_ptr + part * stride_sums + ((piece * BLOCK_M + m) * len(tables) + member) * max_rank
            _shrink(
                x_ptr, a_ptr, out_ptrs, row0 + m, m < num_rows, r0, rank, k_first,
                tl.minimum(k_first + inputs, in_features), split, in_features, stride_xm, BLOCK_M, TILES,
            )  # fmt: skip
            tl.debug_barrier()  # every thread has written before one of them says so
            tl.atomic_add(ready_ptr + piece, 1, sem="release")
    else:
        program -= num_pieces * num_shrinks
        piece = program // num_spans
        slot, row0, num_rows = _load_piece(work_ptr, piece)
        if num_rows > 0:
            member, first, out_features, n_first, n_stop = _find_span(firsts, widths, columns, program % num_spans)
            table_ptr = _find_member(tables, member)
            rank = tl.load(table_ptr + 2 * stride_table + slot)
            b_ptr = _load_address(table_ptr + stride_table + slot, element)
            left_ptrs = sums_ptr + ((piece * BLOCK_M + m) * len(tables) + member) * max_rank
            for i in tl.static_range(len(TILES)):
                if _fits(rank, i, TILES):
                    b = _load_b(b_ptr, 0, n_first, rank, n_stop, out_features, TILES[i])  # comes while this waits
                    _wait_for(ready_ptr + piece, num_shrinks)
                    _expand(
                        left_ptrs, 1, m < num_rows, num_sums, stride_sums, b_ptr, b, y_ptr + first, row0 + m,
                        m < num_rows, rank, n_first, n_stop, out_features, stride_ym, 1.0, PRECISION, SUMS,
                        BLOCK_M, TILES[i],
                    )  # fmt: skip
            _wait_for(ready_ptr + piece, num_shrinks)  # so that no program is left to count when the last one clears
        num_done = tl.atomic_add(counters_ptr + 1, 1, sem="acq_rel") + 1
        if num_done == num_pieces * num_spans:
            # all programs have started, and none waits any more: as the next launch wants to find the counters
            for begin in range(0, NUM_LAUNCH_COUNTERS + num_pieces, CLEARED):
                at = begin + tl.arange(0, CLEARED)
                tl.store(counters_ptr + at, 0, mask=at < NUM_LAUNCH_COUNTERS + num_pieces)


@triton.jit
def _lora_shrink_kernel(
    x_ptr, out_ptr, table_ptr, work_ptr, stride_table, in_features, stride_xm, stride_om, split,
    BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, one block of its rank.
    slot, row0, num_rows = _load_piece(work_ptr, tl.program_id(1))
    r0 = tl.program_id(0) * TILES[-1][0]
    rank = tl.load(table_ptr + 2 * stride_table + slot)
    a_ptr = _load_address(table_ptr + slot, x_ptr.dtype.element_ty)
    m = tl.arange(0, BLOCK_M)
    rows = row0 + m
    _shrink(
        x_ptr, a_ptr, out_ptr + rows * stride_om, rows, m < num_rows, r0, rank, 0, in_features, split, in_features,
        stride_xm, BLOCK_M, TILES,
    )  # fmt: skip


@triton.jit
def _lora_expand_kernel(
    left_ptr, y_ptr, table_ptr, work_ptr, stride_table, in_features, out_features, stride_lm, stride_ym, columns, scale,
    LEFT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # One program: up to BLOCK_M rows of one slot, `columns` outputs, the slot's whole rank and no more.
    # LEFT is "shrunk": left_ptr has float32 rows. Or "token": it has ids, each of which picks a column of A, the
    # product of A and a one-hot row; an id outside the vocabulary picks zeros.
    slot, row0, num_rows = _load_piece(work_ptr, tl.program_id(1))
    rank = tl.load(table_ptr + 2 * stride_table + slot)
    if (num_rows == 0) | (rank == 0):
        return
    element = y_ptr.dtype.element_ty
    b_ptr = _load_address(table_ptr + stride_table + slot, element)
    m = tl.arange(0, BLOCK_M)
    rows, is_row = row0 + m, m < num_rows
    if LEFT == "token":
        ids = tl.load(left_ptr + rows * stride_lm, mask=is_row, other=-1)
        is_left = (ids >= 0) & (ids < in_features)
        left_ptrs = _load_address(table_ptr + slot, element) + ids
        stride_lr = in_features
    else:
        is_left = is_row
        left_ptrs = left_ptr + rows * stride_lm
        stride_lr = 1
    n_first = tl.program_id(0) * columns
    n_stop = tl.minimum(n_first + columns, out_features)
    for i in tl.static_range(len(TILES)):
        if _fits(rank, i, TILES):
            b = _load_b(b_ptr, 0, n_first, rank, n_stop, out_features, TILES[i])
            _expand(
                left_ptrs, stride_lr, is_left, 1, 0, b_ptr, b, y_ptr, rows, is_row, rank, n_first, n_stop, out_features,
                stride_ym, scale, PRECISION, 1, BLOCK_M, TILES[i],
            )  # fmt: skip


def group(x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor) -> None:
    """Launch `lora.lora_group`."""
    work = segments.work(x.device)
    if not len(work):
        return
    _check_rows_are_dense(x, y)
    tables, firsts, widths = _arguments(members)
    in_features, max_rank = members[0][0].in_features, max(weights.max_rank for weights, _first in members)
    tiles = tiles_up_to(x.element_size(), max_rank)
    num_blocks = triton.cdiv(max_rank, tiles[-1][0])
    split, inputs = splits(in_features, len(work) * len(members) * num_blocks)
    num_sums = triton.cdiv(in_features, inputs)
    columns, num_spans = spans(widths, len(work))
    sums = torch.empty(num_sums, len(work), PIECE_ROWS, len(members) * max_rank, dtype=torch.float32, device=x.device)
    _lora_fused_kernel[len(work) * (num_sums * len(members) * num_blocks + num_spans),](
        x, y, sums, tables, firsts, widths, work, segments.counters(x.device), tables[0].stride(0), in_features,
        x.stride(0), y.stride(0), len(work), num_spans, columns, num_sums, inputs, split, max_rank,
        PRECISION=_precision("x", y.dtype), BLOCK_M=PIECE_ROWS, TILES=tiles, enable_fp_fusion=True,
        **COUNTING, **LAUNCH,
    )  # fmt: skip


def shrink(x: torch.Tensor, weights: SlotWeights, segments: AnySegments, out: torch.Tensor) -> None:
    """Launch `lora.lora_shrink`."""
    work = segments.work(x.device)
    if not len(work):
        return
    _check_rows_are_dense(x, out)
    table, tiles = weights.table(), tiles_up_to(x.element_size(), weights.max_rank)
    _lora_shrink_kernel[triton.cdiv(weights.max_rank, tiles[-1][0]), len(work)](
        x, out, table, work, table.stride(0), weights.in_features, x.stride(0), out.stride(0),
        splits(weights.in_features, 1)[0], BLOCK_M=PIECE_ROWS, TILES=tiles, enable_fp_fusion=True, **LAUNCH,
    )  # fmt: skip


def expand(shrunk: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor) -> None:
    """Launch `lora.lora_expand`."""
    _launch_expand("shrunk", shrunk, weights, segments, y)


def embedding(
    token_ids: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor, scale: float
) -> None:
    """Launch `lora.lora_embedding`: the expand, whose rows are columns of A."""
    _launch_expand("token", token_ids[:, None], weights, segments, y, scale=scale)


def _launch_expand(
    left: Literal["shrunk", "token"],
    rows: torch.Tensor,
    weights: SlotWeights,
    segments: AnySegments,
    y: torch.Tensor,
    *,
    scale: float = 1.0,
) -> None:
    work = segments.work(y.device)
    if not len(work):
        return
    _check_rows_are_dense(rows, y)
    table = weights.table()
    columns, num_spans = spans((weights.out_features,), len(work))
    _lora_expand_kernel[num_spans, len(work)](
        rows, y, table, work, table.stride(0), weights.in_features, weights.out_features, rows.stride(0), y.stride(0),
        columns, float(scale), LEFT=left, PRECISION=_precision(left, y.dtype), BLOCK_M=PIECE_ROWS,
        TILES=tiles_up_to(y.element_size(), weights.max_rank), enable_fp_fusion=True, **LAUNCH,
    )  # fmt: skip


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
