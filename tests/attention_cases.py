"""Batches of sequences in scattered blocks, and the float64 truth, for tests of paged attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from loramux_kernels import PrefillBatch, ScoreRule, paged_decode, paged_prefill

NAN = float("nan")


@dataclass(frozen=True)
class AttentionBatch:
    """Chunks (context, count) of sequences: `key[i]` and `value[i]` are chunk i's, in order; the rest is the ops'.

    Whatever nobody should see is NaN: unused blocks, positions beyond a sequence, rows and columns beside the queries.
    Table entries beyond a sequence's blocks name no block.
    """

    chunks: Sequence[tuple[int, int]]
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    starts: tuple[int, ...]
    key: list[torch.Tensor]
    value: list[torch.Tensor]

    @cached_property
    def prefill(self) -> PrefillBatch:
        counts = tuple(count for _context, count in self.chunks)
        return PrefillBatch(self.starts, counts, tuple(context for context, _count in self.chunks), self.tables)

    @cached_property
    def owned(self) -> torch.Tensor:
        """Boolean [num_rows]: the rows of chunks."""
        owned = torch.zeros(len(self.query), dtype=torch.bool)
        for start, (_context, count) in zip(self.starts, self.chunks, strict=True):
            owned[start : start + count] = True
        return owned

    def new_out(self) -> torch.Tensor:
        num_heads = self.query.shape[1] // self.keys.shape[3]
        return torch.full((len(self.query), num_heads * self.values.shape[3]), NAN, dtype=self.query.dtype)

    def run_prefill(self, rule: ScoreRule) -> torch.Tensor:
        out = self.new_out()
        paged_prefill(self.query, self.keys, self.values, self.prefill, out, rule)
        return out

    def run_decode(self, rule: ScoreRule, sequences: Sequence[int] | None = None) -> torch.Tensor:
        """Decode the last row of every chunk, or of those named."""
        chosen = list(range(len(self.chunks)) if sequences is None else sequences)
        lengths = torch.tensor([sum(self.chunks[i]) for i in chosen])
        rows = torch.tensor([self.starts[i] + self.chunks[i][1] - 1 for i in chosen])
        out = self.new_out()
        paged_decode(self.query, self.keys, self.values, self.tables[chosen], lengths, rows, out, rule)
        return out

    def truth(self, rule: ScoreRule) -> torch.Tensor:
        """float64 [num_rows, num_heads * value_dim], NaN in rows of no chunk: position by position, head by head."""
        out = self.new_out().double()
        num_kv_heads, dim = self.keys.shape[2:]
        for start, (context, count), key, value in zip(self.starts, self.chunks, self.key, self.value, strict=True):
            for row, position in enumerate(range(context, context + count), start):
                first = 0 if rule.window is None else max(0, position - rule.window + 1)
                query = self.query[row].double().view(num_kv_heads, -1, dim)
                scores = torch.einsum("hgd,thd->hgt", query, key[first : position + 1].double()) * rule.scale
                if rule.softcap is not None:
                    scores = rule.softcap * (scores / rule.softcap).tanh()
                if rule.sinks is not None:
                    scores = torch.cat([scores, rule.sinks.double().view(num_kv_heads, -1, 1)], dim=-1)
                weights = scores.softmax(-1)[..., : position + 1 - first]
                out[row] = torch.einsum("hgt,the->hge", weights, value[first : position + 1].double()).flatten()
        return out


def make_attention(
    chunks: Sequence[tuple[int, int]],
    *,
    heads: tuple[int, int] = (6, 2),
    widths: tuple[int, int] = (64, 64),
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
) -> AttentionBatch:
    """Keys, values and queries of order 1; heads: of queries and of KV; widths: of a key and of a value."""
    kv_dtype = kv_dtype or dtype
    generator = torch.Generator().manual_seed(sum(heads) + sum(widths))

    def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    blocks = [-(-(context + count) // block_size) for context, count in chunks]
    num_blocks = sum(blocks) + 2
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(chunks), max(blocks) + 1), -(1 << 40))
    keys, values = (torch.full((num_blocks, block_size, heads[1], width), NAN, dtype=kv_dtype) for width in widths)
    starts, key, value, row = [], [], [], 1
    for index, (context, count) in enumerate(chunks):
        own = [free.pop() for _ in range(blocks[index])]
        tables[index, : len(own)] = torch.tensor(own)
        for written, cache, width in ((key, keys, widths[0]), (value, values, widths[1])):
            written.append(random(context + count, heads[1], width, dtype=kv_dtype))
            padded = torch.full((blocks[index] * block_size, heads[1], width), NAN, dtype=kv_dtype)
            padded[: context + count] = written[-1]
            cache[own] = padded.view(len(own), block_size, heads[1], width)
        starts.append(row)
        row += count + 1
    query = torch.full((row, heads[0] * widths[0] + 16), NAN, dtype=dtype)[:, : heads[0] * widths[0]]
    for start, (_context, count) in zip(starts, chunks, strict=True):
        query[start : start + count] = random(count, heads[0] * widths[0], dtype=dtype)
    return AttentionBatch(chunks, query, keys, values, tables, tuple(starts), key, value)
