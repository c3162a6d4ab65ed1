"""Paged attention: the rows of a batch attend to the KV blocks of their own sequences, read where they lie.

keys and values: [num_blocks, block_size, num_kv_heads, width], contiguous, whose widths may differ. query: [num_rows,
num_heads * key_dim], whose rows may lie apart; out: [num_rows, num_heads * value_dim], contiguous, of the same dtype
(float32, float16, bfloat16). num_heads is a multiple of num_kv_heads: neighbouring query heads share a KV head.
keys and values are of the rows' dtype, or, on a CPU beside rows of float32, of any of ITEM_TYPES.
A row sees the positions of its sequence up to its own, and becomes the mean of their values, weighted by a `ScoreRule`.
Sums are float32, a result is rounded once, and no position is read that none of the rows sees. A row depends on no
other row, in the loops of numba and in Triton's kernels to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loramux_kernels.backend import ITEM_TYPES, use_numba, use_triton
from loramux_kernels.prefill_batch import PrefillBatch

MANY_SEQUENCES = 8  # from here on a decoding sequence is one thread's work; of fewer, each of its KV heads is
PIECE_TOKENS = 8  # of a prompt, for which each key and value is read once


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How scores become weights: `scale * query . key`, a cap, a mask by causality and window, softmax with sinks.

    window: how many of the last positions are seen, 1 or more; softcap: scores are `softcap * tanh(score / softcap)`
    (Gemma 2); sinks: [num_heads], one more score per head that takes part in the softmax and has no value (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there are neither cap nor sinks."""
        return self.softcap is None and self.sinks is None


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    rule: ScoreRule,
) -> None:
    """Write what the last token of every sequence attends to into its row of `out`; other rows stay.

    block_tables: int64 [n, max_blocks], of which the blocks that lengths, int64 [n], needs are read; rows: int64 [n],
    the row of each sequence. A sequence of length 0 gets zeros, where numba does not serve: it pads a batch.
    What Triton launches follows from the shapes: lengths, rows and tables may change beneath a captured graph.
    """
    if use_triton(query):
        from loramux_kernels import attention_triton  # triton is imported where it is used

        attention_triton.decode(query, keys, values, block_tables, lengths, rows, out, rule)
        return
    if has_loop(query, keys, values, rule):
        num_heads = keys.shape[2] if len(rows) >= MANY_SEQUENCES else 1  # of an item
        pieces = (rows.data_ptr(), lengths.data_ptr())
        _run_loop(query, keys, values, block_tables, out, rule, len(rows), 1, num_heads, *pieces)
        return
    for table, length, row in zip(block_tables, lengths.tolist(), rows.tolist(), strict=True):
        out[row] = _attend(query[row : row + 1], keys, values, table, length, rule)


def paged_prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: PrefillBatch,
    out: torch.Tensor,
    rule: ScoreRule,
) -> None:
    """Write what every row of every chunk attends to into its row of `out`; rows of no chunk stay."""
    if use_triton(query):
        from loramux_kernels import attention_triton

        attention_triton.prefill(query, keys, values, batch, out, rule)
        return
    if has_loop(query, keys, values, rule):
        pieces = batch.work(PIECE_TOKENS, torch.int64)
        num_tokens = (len(pieces), PIECE_TOKENS)
        _run_loop(query, keys, values, batch.block_tables, out, rule, *num_tokens, 1, pieces.data_ptr())
        return
    chunks = zip(batch.starts, batch.counts, batch.contexts, batch.block_tables, strict=True)
    for start, count, context, table in chunks:
        rows = slice(start, start + count)
        out[rows] = _attend(query[rows], keys, values, table, context + count, rule)


def store_kv(
    key: torch.Tensor, value: torch.Tensor, kv_slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Write the key and value of every row to the cache, rounded to its dtype by `as_kept`.

    key, value: [num_rows, num_kv_heads, width], of any strides; kv_slots: int64 [num_rows], each block * block_size +
    offset, all different.
    """
    if use_triton(key):
        from loramux_kernels import attention_triton

        attention_triton.store(key, value, kv_slots, keys, values)
        return
    keys.flatten(0, 1).index_copy_(0, kv_slots, as_kept(key, keys.dtype))
    values.flatten(0, 1).index_copy_(0, kv_slots, as_kept(value, values.dtype))


def as_kept(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values in the cache's dtype: the nearest numbers; what is finite stays so, what is not stays as it is."""
    if numbers.dtype is dtype:
        return numbers
    largest = torch.finfo(dtype).max
    return torch.where(numbers.isinf(), numbers, numbers.clamp(-largest, largest)).to(dtype)


def has_loop(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: ScoreRule) -> bool:
    """Whether numba serves: float32 on a CPU, a cache of any of ITEM_TYPES, keys as wide as values, no cap or sinks."""
    return rule.is_plain and keys.shape == values.shape and keys.dtype in ITEM_TYPES and use_numba(query)


def _run_loop(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    rule: ScoreRule,
    num_pieces: int,
    max_tokens: int,
    num_heads: int,
    *pieces: int,
) -> None:
    """Run the loop of numba; `num_heads` KV heads are one item."""
    from loramux_kernels import attention_numba, machine_numba  # numba is imported where it is used

    _num_blocks, block_size, num_kv_heads, dim = keys.shape
    group, item_type = query.shape[1] // (num_kv_heads * dim), ITEM_TYPES.index(keys.dtype)
    attention_numba.paged_attention(group, dim, block_size, max_tokens, item_type).run(
        num_pieces * (num_kv_heads // num_heads),
        *(query.data_ptr(), query.stride(0), out.data_ptr(), keys.data_ptr(), values.data_ptr()),
        *(block_tables.data_ptr(), block_tables.shape[1], num_kv_heads, num_heads),
        *(machine_numba.float_bits(rule.scale), rule.window or 0, *pieces),
    )


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, length: int, rule: ScoreRule
) -> torch.Tensor:
    """The reference: query [rows, num_heads * key_dim] of the last positions of one sequence of `length` tokens."""
    blocks = table[: -(-length // keys.shape[1])]
    key, value = (cache[blocks].flatten(0, 1)[:length].float() for cache in (keys, values))
    folded = query.float().unflatten(1, (key.shape[1], -1, key.shape[2]))  # type: ignore[no-untyped-call]
    scores = torch.einsum("rhgd,thd->hgrt", folded, key) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    positions = torch.arange(length, device=query.device)
    last = torch.arange(length - len(query), length, device=query.device)[:, None]
    hidden = positions > last
    if rule.window is not None:
        hidden |= positions <= last - rule.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.float().view(*scores.shape[:2], 1, 1).expand(-1, -1, len(query), 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :length]
    return torch.einsum("hgrt,the->rhge", weights, value).flatten(1).to(query.dtype)
