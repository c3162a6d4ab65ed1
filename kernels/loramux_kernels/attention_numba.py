"""The loop of `attention` in numba: keys and values are read where they lie, block by block.

Softmax is the online one (Milakov and Gimelshein, arXiv:1805.02867): a running maximum per head, and a sum
and an output that are rescaled when it grows. Scores are the shrink of the query heads by a block's keys, and what the
block adds to the output is the expand of their weights by its values: the tiles are those of the LoRA loops.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from loramux_kernels.backend import ITEM_TYPES
from loramux_kernels.emitter_numba import COLUMNS, LANES
from loramux_kernels.machine_numba import bits_float, exp, floats, inline, ints, loop, next_item
from loramux_kernels.team import Loop
from loramux_kernels.tiles_numba import WIDE, expand, narrow_expand, shrink

ONE = np.float32(1)
ZERO = np.float32(0)
NEVER = np.float32(-3e38)  # the score of a position that is not seen


@inline
def _weigh(scores: Any, first: int, stop: int, width: int, before: Any) -> Any:
    """Turn the scores first .. stop into weights, e to what they are below the highest, and the others into zeros.

    Returns the highest so far, and the weights' sum.
    """
    for t in range(width):
        if t < first or t >= stop:
            scores[t] = NEVER
    highest = before
    for t in range(width):
        highest = max(scores[t], highest)
    total = ZERO
    for t in range(width):
        weight = exp(scores[t] - highest) if scores[t] > NEVER else ZERO
        scores[t] = weight
        total += weight
    return highest, total


@functools.cache
def paged_attention(  # noqa: C901 - one loop nest
    group: int, dim: int, block_size: int, max_tokens: int, item_type: int
) -> Loop:
    """A loop for `group` query heads per KV head of width `dim`, and keys and values of a type of ITEM_TYPES.

    Items: pieces of at most `max_tokens` tokens of a sequence, for some of the KV heads each. Arguments: query, floats
    from row to row of it, out, keys, values, block tables, their width, num_kv_heads, KV heads of an item, bits of
    scale, window (0: none), then the pieces, int64: [n, 4] table, row of the first token, tokens, position of the first
    one; where each is one token, its row [n], and the length [n] of its sequence, whose table has the piece's number.
    """
    width = -(-block_size // COLUMNS) * COLUMNS  # a tile writes 4 scores
    wide = dim - dim % WIDE
    nbytes = ITEM_TYPES[item_type].itemsize

    def paged_attention_loop(a: Any) -> None:  # noqa: C901
        num_kv_heads, num_heads, window = a[9], a[10], a[12]
        num_parts = num_kv_heads // num_heads
        stride = nbytes * num_kv_heads * dim
        block_nbytes = stride * block_size
        scale = bits_float(a[11])
        most = max_tokens * num_heads * group  # rows: those of a KV head side by side, of each token `group`
        scores = np.empty(max_tokens * group * width, np.float32)
        query, result = np.empty(most * dim, np.float32), np.empty(most * dim, np.float32)
        highest, total = np.empty(most, np.float32), np.empty(most, np.float32)
        queries, scored, results = query.ctypes.data, scores.ctypes.data, result.ctypes.data
        while True:
            item = next_item(a)
            if item >= a[1]:
                break
            piece, first_head = item // num_parts, item % num_parts * num_heads
            if max_tokens == 1:
                sequence, row, num_tokens, position = (
                    piece,
                    ints(a[13], piece + 1)[piece],
                    1,
                    ints(a[14], piece + 1)[piece] - 1,
                )
            else:
                sequence, row, num_tokens, position = ints(a[13] + 32 * piece, 4)
            table = ints(a[7] + 8 * a[8] * sequence, a[8])
            num_rows = num_tokens * group
            for token in range(num_tokens):
                for head in range(num_heads):
                    at = group * dim * (head * num_tokens + token)
                    given = floats(a[2] + 4 * (a[3] * (row + token) + group * dim * (first_head + head)), group * dim)
                    for i in range(group * dim):
                        query[at + i] = given[i] * scale
                        result[at + i] = ZERO
            for i in range(num_rows * num_heads):
                highest[i] = NEVER
                total[i] = ZERO
            first_seen = max(0, position + 1 - window) if window > 0 else 0
            length = position + num_tokens
            num_blocks = (length + block_size - 1) // block_size
            for block in range(first_seen // block_size, num_blocks):
                offset = block_nbytes * table[block]
                ahead = block_nbytes * table[min(block + 1, num_blocks - 1)] - offset
                begin = max(first_seen, block * block_size)
                num_seen = min(length, (block + 1) * block_size) - begin
                offset += stride * (begin - block * block_size) + nbytes * dim * first_head
                for head in range(num_heads):
                    own, key = head * num_rows, a[5] + offset + nbytes * dim * head
                    sizes = (4 * dim, stride, 4 * width, dim)
                    for t in range(0, num_seen, COLUMNS):
                        at = key + stride * t
                        last = num_seen - t - 1
                        rows, to = queries + 4 * dim * own, scored + 4 * t
                        shrink(item_type, rows, num_rows, at, last, at + ahead, to, sizes)
                    for r in range(num_rows):
                        stop = position + r // group + 1 - begin
                        first = max(0, stop - window) if window > 0 else 0
                        before = highest[own + r]
                        of_row = scores[r * width : (r + 1) * width]
                        highest[own + r], added = _weigh(of_row, first, min(stop, num_seen), width, before)
                        factor = exp(before - highest[own + r])
                        total[own + r] = total[own + r] * factor + added
                        for d in range(dim):
                            result[(own + r) * dim + d] *= factor
                    value = a[6] + offset + nbytes * dim * head
                    sizes = (4 * width, stride, 4 * dim, num_seen)
                    for d in range(0, wide, WIDE):
                        to = results + 4 * (own * dim + d)
                        expand(item_type, scored, num_rows, value + nbytes * d, ahead, to, sizes)
                    for d in range(wide, dim, LANES):
                        to = results + 4 * (own * dim + d)
                        narrow_expand(item_type, scored, num_rows, value + nbytes * d, dim - d, ahead, to, sizes)
            for token in range(num_tokens):
                for head in range(num_heads):
                    at = 4 * group * dim * (num_kv_heads * (row + token) + first_head + head)
                    out = floats(a[4] + at, group * dim)
                    for g in range(group):
                        r = (head * num_tokens + token) * group + g
                        share = ONE / total[r]
                        for d in range(dim):
                            out[g * dim + d] = result[r * dim + d] * share

    return Loop(loop(paged_attention_loop))
