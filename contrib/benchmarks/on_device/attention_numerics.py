"""Paged attention against float64, and sequences alone against the same sequences in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, product

import torch

from loramux_kernels import PrefillBatch, ScoreRule, paged_decode, paged_prefill, store_kv
from on_device.numerics import Checked, by_triton, excess

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class AttentionShapes:
    """heads: (query heads, key and value heads, width of a head). chunks: (tokens in the cache, new ones) of a batch.

    caps: of scores; where there is one, heads have sinks too.
    """

    heads: Sequence[tuple[int, int, int]]
    chunks: Sequence[tuple[int, int]]
    windows: Sequence[int | None]
    caps: Sequence[float | None]
    dtypes: Sequence[torch.dtype]


@dataclass(frozen=True, slots=True)
class Attention:
    """Chunks of sequences whose blocks lie shuffled in the cache; a block of no sequence holds NaN."""

    chunks: Sequence[tuple[int, int]]
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    rule: ScoreRule

    @classmethod
    def random(cls, shape: tuple[int, int, int], chunks: Sequence[tuple[int, int]], like: torch.Tensor) -> Attention:
        """Draw one on the device and in the dtype of `like`, with a plain rule."""
        num_heads, num_kv_heads, dim = shape
        needed = [-(-(context + count) // BLOCK_SIZE) for context, count in chunks]
        shuffled = iter((torch.randperm(sum(needed)) + 1).tolist())
        tables = torch.zeros(len(chunks), max(needed), dtype=torch.int64)
        for row, number in enumerate(needed):
            tables[row, :number] = torch.tensor(list(islice(shuffled, number)))
        cache = like.new_empty(2, sum(needed) + 1, BLOCK_SIZE, num_kv_heads, dim).normal_()
        cache[:, 0] = float("nan")
        query = like.new_empty(sum(count for _, count in chunks), num_heads * dim).normal_()
        return cls(chunks, query, cache[0], cache[1], tables.to(like.device), ScoreRule(dim**-0.5))

    def ruled(self, window: int | None, cap: float | None) -> Attention:
        """The same with another rule."""
        num_heads = self.query.shape[1] // self.keys.shape[3]
        sinks = None if cap is None else torch.linspace(-1, 1, num_heads).to(self.query)
        return replace(self, rule=ScoreRule(self.rule.scale, window, cap, sinks))

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate((count for _, count in self.chunks[:-1]), initial=0))

    def sequence(self, index: int) -> Attention:
        """That chunk as a batch of its own, with the block table no wider than it needs."""
        context, count = self.chunks[index]
        start = self.starts[index]
        tables = self.tables[index : index + 1, : -(-(context + count) // BLOCK_SIZE)].contiguous()
        return replace(self, chunks=[(context, count)], query=self.query[start : start + count], tables=tables)

    def lasts(self) -> Attention:
        """The last token of every chunk alone: a decode step."""
        rows = [start + count - 1 for start, (_, count) in zip(self.starts, self.chunks, strict=True)]
        return replace(self, chunks=[(sum(chunk) - 1, 1) for chunk in self.chunks], query=self.query[rows])

    def prefill(self) -> torch.Tensor:
        contexts, counts = zip(*self.chunks, strict=True)
        out = torch.full_like(self.query, float("nan"))
        batch = PrefillBatch(self.starts, counts, contexts, self.tables)
        paged_prefill(self.query, self.keys, self.values, batch, out, self.rule)
        return out

    def decode(self) -> torch.Tensor:
        out = torch.full_like(self.query, float("nan"))
        rows = torch.arange(len(out), device=out.device)
        lengths = torch.tensor([sum(chunk) for chunk in self.chunks], device=out.device)
        paged_decode(self.query, self.keys, self.values, self.tables, lengths, rows, out, self.rule)
        return out

    def truth(self) -> torch.Tensor:
        """In float64, one chunk after the other."""
        chunks = zip(self.starts, self.chunks, self.tables, strict=True)
        return torch.cat([self._attended(start, context, count, table) for start, (context, count), table in chunks])

    def _attended(self, start: int, context: int, count: int, table: torch.Tensor) -> torch.Tensor:
        rule, (num_kv_heads, dim) = self.rule, self.keys.shape[2:]
        key, value = (cache[table].flatten(0, 1)[: context + count].double() for cache in (self.keys, self.values))
        query = self.query[start : start + count].double().view(count, num_kv_heads, -1, dim)
        scores = torch.einsum("rhgd,shd->hgrs", query, key) * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * (scores / rule.softcap).tanh()
        own = torch.arange(context, context + count, device=query.device)[:, None]
        seen = torch.arange(context + count, device=query.device)
        is_hidden = (seen > own) | (seen <= own - (rule.window or context + count))
        scores = scores.masked_fill(is_hidden, float("-inf"))
        if rule.sinks is not None:
            sinks = rule.sinks.double().view(num_kv_heads, -1, 1, 1).expand(-1, -1, count, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        shares = scores.softmax(dim=-1)[..., : context + count]
        return torch.einsum("hgrs,shd->rhgd", shares, value).flatten(1)


def check_attention(shapes: AttentionShapes, device: torch.device) -> list[Checked]:
    """Go through all shapes by the Triton kernels."""
    return by_triton(shapes.dtypes, lambda dtype: _check_dtype(shapes, device, dtype))


def _check_dtype(shapes: AttentionShapes, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    torch.manual_seed(0)
    like = torch.empty(0, dtype=dtype, device=device)
    drawn = [Attention.random(heads, shapes.chunks, like) for heads in shapes.heads]
    cases = [case.ruled(window, cap) for case, window, cap in product(drawn, shapes.windows, shapes.caps)]
    yield _check("paged_prefill", cases, Attention.prefill)
    yield _check("paged_decode", [case.lasts() for case in cases], Attention.decode)
    num_wrong = sum(not _stores(case) for case in drawn)
    yield Checked("store_kv", dtype, len(drawn), float("inf") if num_wrong else 0.0, 0)


def _check(op: str, cases: Sequence[Attention], run: Callable[[Attention], torch.Tensor]) -> Checked:
    worst, num_variant = 0.0, 0
    for case in cases:
        got, want = run(case), case.truth()
        worst = max(worst, excess(got, want))
        alone = torch.cat([run(case.sequence(index)) for index in range(len(case.chunks))])
        num_variant += int((alone != got).any(1).sum())
    return Checked(op, cases[0].query.dtype, len(cases), worst, num_variant)


def _stores(case: Attention) -> bool:
    """Whether keys and values come to their slots, all bits of them, and nothing else changes."""
    num_blocks, _size, num_kv_heads, dim = case.keys.shape
    slots = torch.randperm(num_blocks * BLOCK_SIZE, device=case.keys.device)[: len(case.query)]
    key, value = case.keys.new_empty(2, len(slots), num_kv_heads, dim).normal_()
    keys, values = (torch.zeros_like(cache) for cache in (case.keys, case.values))
    want_keys, want_values = keys.clone(), values.clone()
    for cache, rows in ((want_keys, key), (want_values, value)):
        cache.flatten(0, 1)[slots] = rows
    store_kv(key, value, slots, keys, values)
    return torch.equal(keys, want_keys) and torch.equal(values, want_values)
