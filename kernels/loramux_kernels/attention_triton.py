"""The Triton form of paged attention: keys and values are read where they lie, block by block, and summed in float32.

Softmax is the online one (Milakov and Gimelshein, arXiv:1805.02867), in powers of two. The query heads that share a KV
head are rows of one product. No atomics: a row's sums follow from its own position alone, whatever shares the batch.
Derivation, block sizes and what has run where: kernels/README.md.
"""

# Kernels are read by Triton's own compiler, which has no types for mypy; its constants are written in capitals.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

from loramux_kernels.attention import ScoreRule
from loramux_kernels.hopper import check_dot
from loramux_kernels.prefill_batch import PrefillBatch

# Reasons are in kernels/README.md; none of these sizes has been measured on a device yet. The weights, left side of
# their product with the values, sit in registers: BLOCK_M stays below 64, so that Hopper takes mma rather than wgmma.
DECODE: Final = {"BLOCK_M": 16, "num_warps": 4, "num_stages": 3}
PREFILL: Final = {"BLOCK_M": 32, "num_warps": 4, "num_stages": 2}
SPLIT: Final = {"SPLIT": 256, "MAX_SPLITS": 32}  # a program's share of a context, in tokens, and shares at most
COMBINE: Final = {"num_warps": 4, "num_stages": 1}
STORE: Final = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
TILE_BYTES: Final = 1 << 14  # of the keys or values of one step of a loop
LOG2E: Final = tl.constexpr(1.4426950408889634)  # weights are powers of two

for _name, _launch in (("paged_decode", DECODE), ("paged_prefill", PREFILL)):
    check_dot(_name, block_m=_launch["BLOCK_M"], num_stages=_launch["num_stages"])

# Lengths and tables change from step to step and lie anywhere: to compile for a multiple of 16 would bring nothing.
VARYING: Final = ("table_width", "window")
ANYWHERE: Final = ("tables_ptr", "lengths_ptr", "rows_ptr", "slots_ptr", "work_ptr", "sinks_ptr")


@triton.jit
def _load(pointers, index, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    # A tile of keys or values, zero beyond their width.
    if WIDTH == BLOCK:
        return tl.load(pointers)
    return tl.load(pointers, mask=index < WIDTH, other=0.0)


@triton.jit
def _attend(
    query, last, first, begin, stop, keys_ptr, values_ptr, table_ptr, stride_kt, stride_vt, scale, window, softcap,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Rows of query [BLOCK_M, BLOCK_D] see positions up to `last` [BLOCK_M]; nothing outside first .. stop is read.
    # scale and softcap hold log2(e): a weight is two to the power of its score.
    # Returns the sum of weighted values, that of the weights, and the exponent that both are below.
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    highest = tl.full((query.shape[0],), float("-inf"), dtype=tl.float32)
    total = tl.zeros((query.shape[0],), dtype=tl.float32)
    acc = tl.zeros((query.shape[0], BLOCK_E), dtype=tl.float32)
    for t0 in range(begin, stop, BLOCK_N):
        t = t0 + n
        # what lies outside is read as its nearest neighbour within, which costs less than a mask, and is not seen
        within = tl.minimum(tl.maximum(t, first), stop - 1)
        slot = tl.load(table_ptr + within // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + within % BLOCK_SIZE
        # [BLOCK_M, BLOCK_D] by [BLOCK_D, BLOCK_N] of the keys, straight from their blocks
        key = _load(keys_ptr + slot[None, :] * stride_kt + d[:, None], d[:, None], KEY_DIM, BLOCK_D)
        scores = tl.dot(query, key, input_precision=PRECISION) * scale
        if softcap is not None:
            scores = softcap * (2.0 * tl.sigmoid(scores * (2.0 / softcap)) - 1.0)  # softcap * tanh(scores / softcap)
        distance = last[:, None] - t[None, :]
        visible = distance >= 0
        if window is not None:
            visible = distance.to(tl.uint32) < window.to(tl.uint32)  # at once that it is not negative
        scores = tl.where(visible, scores, float("-inf"))
        highest_now = tl.maximum(highest, tl.max(scores, axis=1))
        below = highest_now
        if window is not None:
            # a row that has seen nothing yet stays at minus infinity, from which only a number can be subtracted
            below = tl.where(highest_now == float("-inf"), 0.0, highest_now)
        weights = tl.exp2(scores - below[:, None])
        shrink = tl.exp2(highest - below)
        total = total * shrink + tl.sum(weights, axis=1)
        # [BLOCK_M, BLOCK_N] by [BLOCK_N, BLOCK_E] of the values
        value = _load(values_ptr + slot[:, None] * stride_vt + e[None, :], e[None, :], VALUE_DIM, BLOCK_E)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        highest = highest_now
    return acc, total, highest


@triton.jit
def _factor(total, highest, head, inside, sinks_ptr):
    # 1 / the sum of the weights, a sink's among them, which turns a sum of values into their mean; 0 for no weights.
    shrink = 1.0
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=inside, other=0.0).to(tl.float32) * LOG2E
        below = tl.maximum(highest, sink)
        shrink = tl.exp2(highest - below)
        total = total * shrink + tl.exp2(sink - below)
    return shrink / tl.where(total == 0.0, float("inf"), total)


@triton.jit
def _share(length, window, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    # The first position a sequence's last token sees, and how many each split takes: by its own length alone.
    first = 0
    if window is not None:
        first = tl.maximum(length - window, 0)
    return first, tl.maximum(tl.cdiv(length - first, MAX_SPLITS * SPLIT), 1) * SPLIT


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def _paged_decode_kernel(
    query_ptr, keys_ptr, values_ptr, tables_ptr, lengths_ptr, rows_ptr, sinks_ptr, out_ptr, sums_ptr, stats_ptr,
    table_width, stride_qm, stride_om, stride_kt, stride_vt, scale, window, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # One program: HEADS query heads of one KV head, one sequence, one share of its positions.
    TILES: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head, split, sequence = tl.program_id(0) // TILES, tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    first, share = _share(length, window, SPLIT, MAX_SPLITS)
    begin = first + split * share
    if (split > 0) & (begin >= length):
        return
    row = tl.load(rows_ptr + sequence).to(tl.int64)

    m = tl.arange(0, BLOCK_M)
    own = tl.program_id(0) % TILES * HEADS + m  # of the query heads of this KV head
    head = kv_head * GROUP + own
    inside = (m < HEADS) & (own < GROUP)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    query_ptrs = query_ptr + row * stride_qm + head[:, None] * KEY_DIM + d[None, :]
    query = tl.load(query_ptrs, mask=inside[:, None] & (d[None, :] < KEY_DIM), other=0.0)
    stop = tl.minimum(begin + share, length)
    acc, total, highest = _attend(
        query, tl.full((BLOCK_M,), stop - 1, dtype=tl.int32), first, begin, stop,
        keys_ptr + kv_head * KEY_DIM, values_ptr + kv_head * VALUE_DIM, tables_ptr + sequence * table_width,
        stride_kt, stride_vt, scale, None, softcap,
        KEY_DIM, VALUE_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, BLOCK_E, PRECISION,
    )  # fmt: skip
    written = inside[:, None] & (e[None, :] < VALUE_DIM)
    if length - first <= share:
        # the only share: nothing to combine
        mean = acc * _factor(total, highest, head, inside, sinks_ptr)[:, None]
        out_ptrs = out_ptr + row * stride_om + head[:, None] * VALUE_DIM + e[None, :]
        tl.store(out_ptrs, mean.to(out_ptr.dtype.element_ty), mask=written)
        return
    if sums_ptr is not None:  # which it is where no sequence of the table can be split
        num_heads = tl.num_programs(0) // TILES * GROUP
        place = (sequence * num_heads + head) * tl.num_programs(1) + split
        tl.store(sums_ptr + place[:, None] * VALUE_DIM + e[None, :], acc, mask=written)
        tl.store(stats_ptr + 2 * place, total, mask=inside)
        tl.store(stats_ptr + 2 * place + 1, highest, mask=inside)


@triton.jit(do_not_specialize=(*VARYING, "num_splits"), do_not_specialize_on_alignment=ANYWHERE)
def _combine_splits_kernel(
    sums_ptr, stats_ptr, lengths_ptr, rows_ptr, sinks_ptr, out_ptr, num_splits, stride_om, window,
    VALUE_DIM: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    # One program: one head of one sequence, all its shares at once, as many as MAX_SPLITS whatever the grid had.
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    first, share = _share(length, window, SPLIT, MAX_SPLITS)
    if length - first <= share:
        return
    row = tl.load(rows_ptr + sequence).to(tl.int64)

    split = tl.arange(0, MAX_SPLITS)
    e = tl.arange(0, BLOCK_E)
    used = split * share < length - first
    place = (sequence * tl.num_programs(0) + head) * num_splits + split
    totals = tl.load(stats_ptr + 2 * place, mask=used, other=0.0)
    highests = tl.load(stats_ptr + 2 * place + 1, mask=used, other=float("-inf"))
    highest = tl.max(highests, axis=0)
    weights = tl.exp2(highests - highest)
    sums_ptrs = sums_ptr + place[:, None] * VALUE_DIM + e[None, :]
    sums = tl.load(sums_ptrs, mask=used[:, None] & (e[None, :] < VALUE_DIM), other=0.0)
    acc = tl.sum(sums * weights[:, None], axis=0)
    acc = acc * _factor(tl.sum(totals * weights, axis=0), highest, head, True, sinks_ptr)
    out_ptrs = out_ptr + row * stride_om + head * VALUE_DIM + e
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=e < VALUE_DIM)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def _paged_prefill_kernel(
    query_ptr, keys_ptr, values_ptr, tables_ptr, work_ptr, sinks_ptr, out_ptr,
    table_width, stride_qm, stride_om, stride_kt, stride_vt, scale, window, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # One program: HEADS query heads of one KV head, and as many tokens of one chunk as BLOCK_M rows hold.
    TILES: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = tl.program_id(0) // TILES
    work = work_ptr + tl.program_id(1) * 4
    chunk, row0, num_rows, position0 = tl.load(work), tl.load(work + 1), tl.load(work + 2), tl.load(work + 3)

    m = tl.arange(0, BLOCK_M)
    token = m // HEADS
    own = tl.program_id(0) % TILES * HEADS + m % HEADS
    head = kv_head * GROUP + own
    inside = (token < num_rows) & (own < GROUP)
    rows = (row0 + token).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    query_ptrs = query_ptr + rows[:, None] * stride_qm + head[:, None] * KEY_DIM + d[None, :]
    query = tl.load(query_ptrs, mask=inside[:, None] & (d[None, :] < KEY_DIM), other=0.0)
    first = 0
    if window is not None:
        first = tl.maximum(position0 - window + 1, 0)
    # steps begin at multiples of BLOCK_N, so that a row's sums do not depend on the first row of its program
    acc, total, highest = _attend(
        query, position0 + token, first, first // BLOCK_N * BLOCK_N, position0 + num_rows,
        keys_ptr + kv_head * KEY_DIM, values_ptr + kv_head * VALUE_DIM, tables_ptr + chunk.to(tl.int64) * table_width,
        stride_kt, stride_vt, scale, window, softcap,
        KEY_DIM, VALUE_DIM, BLOCK_SIZE, BLOCK_N, BLOCK_D, BLOCK_E, PRECISION,
    )  # fmt: skip
    acc = acc * _factor(total, highest, head, inside, sinks_ptr)[:, None]
    out_ptrs = out_ptr + rows[:, None] * stride_om + head[:, None] * VALUE_DIM + e[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (e[None, :] < VALUE_DIM))


@triton.jit(do_not_specialize_on_alignment=ANYWHERE)
def _store_kv_kernel(
    key_ptr, value_ptr, slots_ptr, keys_ptr, values_ptr, stride_km, stride_kh, stride_vm, stride_vh,
    NUM_KV_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: BLOCK elements of one row's key and value.
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < NUM_KV_HEADS * KEY_DIM
    key = tl.load(key_ptr + row * stride_km + i // KEY_DIM * stride_kh + i % KEY_DIM, mask=inside)
    tl.store(keys_ptr + slot * (NUM_KV_HEADS * KEY_DIM) + i, key, mask=inside)
    inside = i < NUM_KV_HEADS * VALUE_DIM
    value = tl.load(value_ptr + row * stride_vm + i // VALUE_DIM * stride_vh + i % VALUE_DIM, mask=inside)
    tl.store(values_ptr + slot * (NUM_KV_HEADS * VALUE_DIM) + i, value, mask=inside)


def decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_tables: torch.Tensor, lengths: torch.Tensor,
    rows: torch.Tensor, out: torch.Tensor, rule: ScoreRule,
) -> None:  # fmt: skip
    """Launch one kernel, and where a sequence can be long enough to be split a second; `attention.paged_decode`'s."""
    num_heads = query.shape[1] // keys.shape[3]
    longest = block_tables.shape[1] * keys.shape[1]
    num_splits = _num_splits(longest if rule.window is None else min(rule.window, longest))
    sums = stats = None
    if num_splits > 1:
        shape = (len(rows), num_heads, num_splits)
        sums = torch.empty(*shape, values.shape[3], dtype=torch.float32, device=query.device)
        stats = torch.empty(*shape, 2, dtype=torch.float32, device=query.device)
    constants = tile_constants(num_heads, keys, values, DECODE["BLOCK_M"])
    grid = (_num_tiles(constants) * keys.shape[2], num_splits, len(rows))
    _paged_decode_kernel[grid](
        query, keys, values, block_tables, lengths, rows, rule.sinks, out, sums, stats, block_tables.shape[1],
        query.stride(0), out.stride(0), keys.stride(1), values.stride(1), *_numbers(rule),
        PRECISION=_precision(query), enable_fp_fusion=True, **constants, **SPLIT, **DECODE,
    )  # fmt: skip
    if num_splits > 1:
        _combine_splits_kernel[(num_heads, len(rows))](
            sums, stats, lengths, rows, rule.sinks, out, num_splits, out.stride(0), rule.window,
            VALUE_DIM=values.shape[3], BLOCK_E=constants["BLOCK_E"], enable_fp_fusion=True, **SPLIT, **COMBINE,
        )  # fmt: skip


def prefill(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PrefillBatch, out: torch.Tensor,
    rule: ScoreRule,
) -> None:  # fmt: skip
    """Launch one kernel for all chunks; the contract is `attention.paged_prefill`'s."""
    constants = tile_constants(query.shape[1] // keys.shape[3], keys, values, PREFILL["BLOCK_M"])
    work = batch.work(PREFILL["BLOCK_M"] // constants["HEADS"])
    _paged_prefill_kernel[(_num_tiles(constants) * keys.shape[2], len(work))](
        query, keys, values, batch.block_tables, work, rule.sinks, out, batch.block_tables.shape[1],
        query.stride(0), out.stride(0), keys.stride(1), values.stride(1), *_numbers(rule),
        PRECISION=_precision(query), enable_fp_fusion=True, **constants, **PREFILL,
    )  # fmt: skip


def store(
    key: torch.Tensor, value: torch.Tensor, kv_slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Launch one kernel for keys and values; the contract is `attention.store_kv`'s."""
    key, value = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (key, value))
    widest = max(key.shape[1] * key.shape[2], value.shape[1] * value.shape[2])
    _store_kv_kernel[(len(kv_slots), triton.cdiv(widest, STORE["BLOCK"]))](
        key, value, kv_slots, keys, values, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        NUM_KV_HEADS=keys.shape[-2], KEY_DIM=keys.shape[-1], VALUE_DIM=values.shape[-1], enable_fp_fusion=True, **STORE,
    )  # fmt: skip


def tile_constants(num_heads: int, keys: torch.Tensor, values: torch.Tensor, block_rows: int) -> dict[str, Any]:
    """What a kernel of `block_rows` rows is compiled for: the layout of the cache and the tiles it is read in."""
    _num_blocks, block_size, num_kv_heads, key_dim = keys.shape
    group = num_heads // num_kv_heads
    block_d, block_e = (max(16, triton.next_power_of_2(width)) for width in (key_dim, values.shape[3]))
    return {
        "GROUP": group,
        "HEADS": min(group, block_rows),
        "KEY_DIM": key_dim,
        "VALUE_DIM": values.shape[3],
        "BLOCK_SIZE": block_size,
        "BLOCK_N": min(64, max(16, TILE_BYTES // (max(block_d, block_e) * keys.element_size()))),
        "BLOCK_D": block_d,
        "BLOCK_E": block_e,
    }


def dot_precision(dtype: torch.dtype, *, is_amd: bool) -> str:
    """How float32 is multiplied: by three tf32 products on NVIDIA, natively on AMD; 16-bit products know one way."""
    return "tf32x3" if dtype == torch.float32 and not is_amd else "ieee"


def _numbers(rule: ScoreRule) -> tuple[float, int | None, float | None]:
    """Scale, window and cap of scores that are powers of two."""
    log2e = LOG2E.value
    return rule.scale * log2e, rule.window, None if rule.softcap is None else rule.softcap * log2e


def _precision(query: torch.Tensor) -> str:
    return dot_precision(query.dtype, is_amd=torch.version.hip is not None)


def _num_tiles(constants: dict[str, Any]) -> int:
    return -(-int(constants["GROUP"]) // int(constants["HEADS"]))


def _num_splits(num_positions: int) -> int:
    """Shares of the longest context that a grid must serve; `_share` never makes more of a shorter one."""
    return max(1, min(SPLIT["MAX_SPLITS"], -(-num_positions // SPLIT["SPLIT"])))
