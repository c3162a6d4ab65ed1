"""The loop of `attention.paged_decode` in numba: keys and values are read where they lie, once, block by block.

Softmax is the online one (Milakov and Gimelshein, arXiv:1805.02867): a running maximum per head, and a sum
and an output that are rescaled when it grows. Scores are the shrink of the query heads by a block's keys, and what the
block adds to the output is the expand of their weights by its values: the tiles are those of the LoRA loops.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from loramux_kernels.machine_numba import bits_float, exp, floats, inline, ints, loop, next_item
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import (
    COLUMNS,
    LANES,
    MAX_ROWS,
    WIDE,
    expand_1,
    expand_2,
    expand_3,
    expand_4,
    expand_narrow_1,
    shrink_1,
    shrink_2,
    shrink_3,
    shrink_4,
)

ONE = np.float32(1)
ZERO = np.float32(0)
NEVER = np.float32(-3e38)  # the score of a position that is not seen


@inline
def _add_scores(query: int, num_rows: int, key: int, last: int, ahead: int, scores: int, sizes: Any) -> None:
    """Put query . key of 4 tokens, of which those after the `last` repeat it, into scores, for all rows of query."""
    row = 0
    while row + 4 <= num_rows and MAX_ROWS >= 4:
        shrink_4(query + sizes[0] * row, key, last, ahead, scores + sizes[2] * row, sizes)
        row += 4
    if row + 3 <= num_rows and MAX_ROWS >= 4:
        shrink_3(query + sizes[0] * row, key, last, ahead, scores + sizes[2] * row, sizes)
        row += 3
    while row + 2 <= num_rows:
        shrink_2(query + sizes[0] * row, key, last, ahead, scores + sizes[2] * row, sizes)
        row += 2
    if row < num_rows:
        shrink_1(query + sizes[0] * row, key, last, ahead, scores + sizes[2] * row, sizes)


@inline
def _add_values(weights: int, num_rows: int, value: int, ahead: int, out: int, sizes: Any) -> None:
    """Add weights . values to 4 vectors of out, for all rows of weights."""
    row = 0
    while row + 4 <= num_rows and MAX_ROWS >= 4:
        expand_4(weights + sizes[0] * row, value, 0, ahead, out + sizes[2] * row, sizes)
        row += 4
    if row + 3 <= num_rows and MAX_ROWS >= 4:
        expand_3(weights + sizes[0] * row, value, 0, ahead, out + sizes[2] * row, sizes)
        row += 3
    while row + 2 <= num_rows:
        expand_2(weights + sizes[0] * row, value, 0, ahead, out + sizes[2] * row, sizes)
        row += 2
    if row < num_rows:
        expand_1(weights + sizes[0] * row, value, 0, ahead, out + sizes[2] * row, sizes)


@inline
def _weigh(scores: Any, num_seen: int, width: int, before: Any) -> Any:
    """Turn scores into weights, e to what they are below the highest; returns the highest, and the weights' sum."""
    for t in range(num_seen, width):
        scores[t] = NEVER
    highest = before
    for t in range(width):
        highest = max(scores[t], highest)
    total = ZERO
    for t in range(width):
        weight = exp(scores[t] - highest)
        scores[t] = weight
        total += weight
    return highest, total


@functools.cache
def paged_decode(group: int, dim: int, block_size: int) -> Loop:  # noqa: C901 - one loop nest
    """A loop for `group` query heads per KV head of width `dim`, which it is compiled for. Items: a sequence's parts.

    Arguments: query, floats from row to row of it, out, keys, values, block tables, their width, lengths, rows,
    num_kv_heads, bits of scale, window (0: none), KV heads of an item.
    """
    width = -(-block_size // COLUMNS) * COLUMNS  # a tile writes 4 scores
    wide = dim - dim % WIDE

    def paged_decode_loop(a: Any) -> None:  # noqa: C901
        num_kv_heads, window, num_heads = a[11], a[13], a[14]
        num_parts = num_kv_heads // num_heads
        stride = 4 * num_kv_heads * dim
        block_nbytes = stride * block_size
        scale = bits_float(a[12])
        lengths, rows = ints(a[9], a[1] // num_parts), ints(a[10], a[1] // num_parts)
        scores = np.empty(group * width, np.float32)
        query, result = (np.empty(num_heads * group * dim, np.float32), np.empty(num_heads * group * dim, np.float32))
        highest, total = np.empty(num_heads * group, np.float32), np.empty(num_heads * group, np.float32)
        queries, scored, results = query.ctypes.data, scores.ctypes.data, result.ctypes.data
        while True:
            item = next_item(a)
            if item >= a[1]:
                break
            sequence, first_head = item // num_parts, item % num_parts * num_heads
            row, length = rows[sequence], lengths[sequence]
            start = 4 * first_head * group * dim
            given = floats(a[2] + 4 * a[3] * row + start, num_heads * group * dim)
            for i in range(num_heads * group * dim):
                query[i] = given[i] * scale
                result[i] = ZERO
            for head in range(num_heads * group):
                highest[head] = NEVER
                total[head] = ZERO
            table = ints(a[7] + 8 * a[8] * sequence, a[8])
            first_seen = max(0, length - window) if window > 0 else 0
            num_blocks = (length + block_size - 1) // block_size
            for block in range(first_seen // block_size, num_blocks):
                offset = block_nbytes * table[block]
                ahead = block_nbytes * table[min(block + 1, num_blocks - 1)] - offset
                first = max(0, first_seen - block * block_size)
                num_seen = min(block_size, length - block * block_size) - first
                offset += stride * first + 4 * dim * first_head
                for head in range(num_heads):
                    own, key = 4 * head * group * dim, a[5] + offset + 4 * dim * head
                    for t in range(0, num_seen, COLUMNS):
                        sizes = (4 * dim, stride, 4 * width, dim)
                        at = key + stride * t
                        _add_scores(queries + own, group, at, num_seen - t - 1, at + ahead, scored + 4 * t, sizes)
                    for g in range(group):
                        h = head * group + g
                        before = highest[h]
                        highest[h], added = _weigh(scores[g * width : (g + 1) * width], num_seen, width, before)
                        shrink = exp(before - highest[h])
                        total[h] = total[h] * shrink + added
                        for d in range(dim):
                            result[h * dim + d] *= shrink
                    value = a[6] + offset + 4 * dim * head
                    sizes = (4 * width, stride, 4 * dim, num_seen)
                    for d in range(0, wide, WIDE):
                        _add_values(scored, group, value + 4 * d, ahead, results + own + 4 * d, sizes)
                    for d in range(wide, dim, LANES):
                        for g in range(group):
                            to = results + own + 4 * (g * dim + d)
                            expand_narrow_1(scored + 4 * width * g, value + 4 * d, dim - d, ahead, to, sizes)
            out = floats(a[4] + 4 * num_kv_heads * group * dim * row + start, num_heads * group * dim)
            for head in range(num_heads * group):
                share = ONE / total[head]
                for d in range(dim):
                    out[head * dim + d] = result[head * dim + d] * share

    return Loop(loop(paged_decode_loop))
