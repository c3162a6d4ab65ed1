"""Paged decode attention against float64, and sequences alone against the same sequences in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

import torch

from loramux_kernels import paged_decode, select_backend
from on_device.numerics import TOLERANCES, Checked

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class AttentionShapes:
    """heads: (query heads, key and value heads, width of a head). lengths: of the sequences of the one batch."""

    heads: Sequence[tuple[int, int, int]]
    lengths: Sequence[int]
    windows: Sequence[int | None]
    dtypes: Sequence[torch.dtype]


@dataclass(frozen=True, slots=True)
class Decode:
    """One new token for each sequence; blocks of all sequences lie shuffled, those of no sequence hold NaN."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    block_tables: torch.Tensor
    lengths: torch.Tensor
    window: int | None

    @classmethod
    def random(
        cls, heads: tuple[int, int, int], lengths: Sequence[int], window: int | None, like: torch.Tensor
    ) -> Decode:
        """Draw one on the device and in the dtype of `like`."""
        num_heads, num_kv_heads, dim = heads
        needed = [-(-length // BLOCK_SIZE) for length in lengths]
        shuffled = iter((torch.randperm(sum(needed)) + 1).tolist())
        block_tables = torch.zeros(len(lengths), max(needed), dtype=torch.int64)
        for row, number in enumerate(needed):
            block_tables[row, :number] = torch.tensor(list(islice(shuffled, number)))
        cache = like.new_empty(2, sum(needed) + 2, BLOCK_SIZE, num_kv_heads, dim).normal_()
        cache[:, -1] = float("nan")
        return cls(
            query=like.new_empty(len(lengths), num_heads * dim).normal_(),
            keys=cache[0],
            values=cache[1],
            block_tables=block_tables.to(like.device),
            lengths=torch.tensor(lengths, device=like.device),
            window=window,
        )

    def row(self, row: int) -> Decode:
        """That sequence as a batch of its own, with the block table no wider than it needs."""
        one = slice(row, row + 1)
        width = -(-int(self.lengths[row]) // BLOCK_SIZE)
        tables = self.block_tables[one, :width].contiguous()
        return replace(self, query=self.query[one], block_tables=tables, lengths=self.lengths[one])

    def run(self) -> torch.Tensor:
        """[num_sequences, num_heads * dim], by the op."""
        out = torch.full_like(self.query, float("nan"))
        rows = torch.arange(len(out), device=out.device)
        scale = float(self.keys.shape[-1]) ** -0.5
        paged_decode(
            self.query,
            self.keys,
            self.values,
            self.block_tables,
            self.lengths,
            rows,
            out,
            scale=scale,
            window=self.window,
        )
        return out

    def truth(self) -> torch.Tensor:
        """The same in float64, one sequence after the other."""
        return torch.stack([self._attended(row) for row in range(len(self.query))])

    def _attended(self, row: int) -> torch.Tensor:
        num_kv_heads, dim = self.keys.shape[2:]
        length = int(self.lengths[row])
        first = 0 if self.window is None else max(0, length - self.window)
        key, value = (
            cache[self.block_tables[row]].flatten(0, 1)[first:length].double() for cache in (self.keys, self.values)
        )  # [seen, num_kv_heads, dim]
        query = self.query[row].double().view(num_kv_heads, -1, dim)
        shares = (torch.einsum("hgd,shd->hgs", query, key) * dim**-0.5).softmax(dim=-1)
        return torch.einsum("hgs,shd->hgd", shares, value).flatten()


def check_attention(shapes: AttentionShapes, device: torch.device) -> list[Checked]:
    """Go through all shapes by the Triton kernels."""
    select_backend("triton")
    try:
        return [_check(list(_cases(shapes, device, dtype)), dtype) for dtype in shapes.dtypes]
    finally:
        select_backend(None)


def _cases(shapes: AttentionShapes, device: torch.device, dtype: torch.dtype) -> Iterator[Decode]:
    torch.manual_seed(0)
    like = torch.empty(0, dtype=dtype, device=device)
    for heads, window in product(shapes.heads, shapes.windows):
        yield Decode.random(heads, shapes.lengths, window, like)


def _check(cases: Sequence[Decode], dtype: torch.dtype) -> Checked:
    worst, num_variant = 0.0, 0
    relative, absolute = TOLERANCES[dtype]
    for case in cases:
        got, want = case.run(), case.truth()
        excess = (got.double() - want).abs() / (absolute + relative * want.abs())
        worst = max(worst, float(excess.nan_to_num(nan=float("inf")).max()))
        num_variant += sum(not torch.equal(case.row(row).run()[0], got[row]) for row in range(len(got)))
    return Checked("paged_decode", dtype, len(cases), worst, num_variant)
