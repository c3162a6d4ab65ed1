"""Paged decode attention: one new token per sequence attends to the KV blocks of its sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.backend import use_numba

MANY_SEQUENCES = 8  # from here on a sequence is one thread's work; of fewer, each of its KV heads is


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> None:
    """Write `softmax(scale * query . keys) . values` of every sequence to its row of `out`; other rows stay.

    query: [num_rows, num_heads * head_dim], whose rows may lie apart, out: the same, contiguous; keys, values:
    [num_blocks, block_size, num_kv_heads, head_dim]; num_heads is a multiple of num_kv_heads. block_tables: int64 [n,
    max_blocks], of which the blocks that lengths int64 [n] needs are read by the loops, and all must be valid; rows:
    int64 [n], the row of each sequence. window: how many of the last positions are seen; None = all.
    """
    _num_blocks, block_size, num_kv_heads, dim = keys.shape
    group = query.shape[1] // (num_kv_heads * dim)
    if use_numba(query):
        from loramux_kernels import attention_numba, machine_numba  # numba is imported where it is used

        num_heads = num_kv_heads if len(rows) >= MANY_SEQUENCES else 1  # of an item
        attention_numba.paged_decode(group, dim, block_size).run(
            len(rows) * (num_kv_heads // num_heads),
            *(query.data_ptr(), query.stride(0), out.data_ptr(), keys.data_ptr(), values.data_ptr()),
            *(block_tables.data_ptr(), block_tables.shape[1], lengths.data_ptr(), rows.data_ptr()),
            *(num_kv_heads, machine_numba.float_bits(scale), window or 0, num_heads),
        )
        return
    key, value = (_gather(cache, block_tables) for cache in (keys, values))  # [n, num_kv_heads, length, head_dim]
    positions = torch.arange(key.shape[2], device=query.device)
    hidden = positions >= lengths[:, None]
    if window is not None:
        hidden |= positions < lengths[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
    folded = query[rows].view(len(rows), num_kv_heads, group, dim)
    attended = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask[:, None, None], scale=scale)
    out[rows] = attended.reshape(len(rows), -1)


def _gather(cache: torch.Tensor, block_tables: torch.Tensor) -> torch.Tensor:
    blocks = cache.index_select(0, block_tables.flatten())
    return blocks.view(block_tables.shape[0], -1, *cache.shape[2:]).transpose(1, 2)
