"""The loop of `attention.paged_decode` in numba: keys and values are read where they lie, once, block by block.

Softmax is the online one (Milakov and Gimelshein, arXiv:1805.02867): a running maximum per head, and a sum
and an output that are rescaled when it grows.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from loramux_kernels.machine_numba import CACHE_LINE, bits_float, exp, floats, inline, ints, loop, next_item, prefetch
from loramux_kernels.team import Loop

ONE = np.float32(1)
ZERO = np.float32(0)
NEVER = np.float32(-3e38)  # the score of a position that is not seen


@inline
def _add_scores(
    scores: Any, query: Any, keys: int, stride: int, first: int, stop: int, group: int, dim: int, width: int
) -> None:
    """Put query . key of tokens first .. stop of a block into scores [group, width]; `keys` is one head's address."""
    for t in range(first, stop):
        key = floats(keys + 4 * stride * t, dim)
        for g in range(group):
            score = ZERO
            for d in range(dim):
                score += query[g * dim + d] * key[d]
            scores[g * width + t] = score


@inline
def _maximum(scores: Any, width: int, highest: Any) -> Any:
    for t in range(width):
        highest = max(scores[t], highest)
    return highest


@inline
def _weigh(scores: Any, width: int, highest: Any) -> Any:
    """Turn scores into weights, e to what they are below the highest; returns their sum."""
    total = ZERO
    for t in range(width):
        weight = exp(scores[t] - highest)
        scores[t] = weight
        total += weight
    return total


@functools.cache
def paged_decode(group: int, dim: int, block_size: int) -> Loop:  # noqa: C901 - one loop nest
    """A loop for `group` query heads per KV head of width `dim`, which it is compiled for. Items: sequences.

    Arguments: query, floats from row to row of it, out, keys, values, block tables, their width, lengths, rows,
    num_kv_heads, bits of scale, window (0: none).
    """

    def paged_decode_loop(a: Any) -> None:  # noqa: C901
        num_sequences, num_kv_heads, window = a[1], a[11], a[13]
        num_heads = num_kv_heads * group
        stride = num_kv_heads * dim
        scale = bits_float(a[12])
        lengths, rows = ints(a[9], num_sequences), ints(a[10], num_sequences)
        scores = np.empty(group * block_size, np.float32)
        query, result = np.empty(num_heads * dim, np.float32), np.empty(num_heads * dim, np.float32)
        highest, total = np.empty(num_heads, np.float32), np.empty(num_heads, np.float32)
        while True:
            sequence = next_item(a)
            if sequence >= num_sequences:
                break
            row, length = rows[sequence], lengths[sequence]
            given = floats(a[2] + 4 * a[3] * row, num_heads * dim)
            for i in range(num_heads * dim):
                query[i] = given[i] * scale
                result[i] = ZERO
            for head in range(num_heads):
                highest[head] = NEVER
                total[head] = ZERO
            table = ints(a[7] + 8 * a[8] * sequence, a[8])
            first_seen = max(0, length - window) if window > 0 else 0
            num_blocks = (length + block_size - 1) // block_size
            for block in range(first_seen // block_size, num_blocks):
                offset = 4 * stride * block_size * table[block]
                following = 4 * stride * block_size * table[min(block + 1, num_blocks - 1)]
                first = max(0, first_seen - block * block_size)
                stop = min(block_size, length - block * block_size)
                for head in range(num_kv_heads):
                    for line in range(4 * dim * block_size * head, 4 * dim * block_size * (head + 1), CACHE_LINE):
                        prefetch(a[5] + following + line)
                        prefetch(a[6] + following + line)
                    if stop - first < block_size:
                        for i in range(group * block_size):
                            scores[i] = NEVER
                    own_query = query[head * group * dim : (head + 1) * group * dim]
                    keys = a[5] + offset + 4 * dim * head
                    _add_scores(scores, own_query, keys, stride, first, stop, group, dim, block_size)
                    for g in range(group):
                        h = head * group + g
                        own_scores = scores[g * block_size : (g + 1) * block_size]
                        before = highest[h]
                        highest[h] = _maximum(own_scores, block_size, before)
                        shrink = exp(before - highest[h])
                        total[h] = total[h] * shrink + _weigh(own_scores, block_size, highest[h])
                        for d in range(dim):
                            result[h * dim + d] *= shrink
                    for t in range(first, stop):
                        value = floats(a[6] + offset + 4 * (stride * t + dim * head), dim)
                        for g in range(group):
                            weight = scores[g * block_size + t]
                            for d in range(dim):
                                result[(head * group + g) * dim + d] += weight * value[d]
            out = floats(a[4] + 4 * num_heads * dim * row, num_heads * dim)
            for head in range(num_heads):
                share = ONE / total[head]
                for d in range(dim):
                    out[head * dim + d] = result[head * dim + d] * share

    return Loop(loop(paged_decode_loop))
