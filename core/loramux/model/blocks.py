"""Blocks: rows as wide as a vocabulary, looked at by way of what short blocks of them come to.

torch's own `max(dim)` carries an index through every comparison, its `topk` partitions a copy of every row, and its
`cumsum` goes number by number. Maxima and sums of blocks come at the speed of memory, and leave little to look into.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

BLOCK_SIZE = 64
SEARCH_SIZE = 512


class Blocks:
    """Rows of numbers that are not negative: `values` [num_rows, width], left as they are. No row looks at another."""

    size = BLOCK_SIZE

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.width = values.shape[-1]

    @functools.cached_property
    def maxima(self) -> torch.Tensor:
        """[num_rows, num_blocks]."""
        return block_maxima(self.values, self.size)

    def rows(self, at: torch.Tensor) -> Blocks:
        """Some of the rows, in ascending order; without a copy when they are all."""
        return self if len(at) == len(self.values) else Blocks(self.values[at])

    def largest(self, k: int) -> torch.Tensor:
        """The k largest values of each row, largest first: [num_rows, k].

        They lie in the k blocks of the largest maxima: each of these has a value that is at least any one elsewhere.
        """
        if 2 * k * self.size > self.width:
            return torch.topk(self.values, k, dim=-1).values
        blocks = torch.topk(self.maxima, k, dim=-1, sorted=False).indices
        return torch.topk(self.read(blocks), k, dim=-1).values

    def sums(self, thresholds: torch.Tensor) -> torch.Tensor:
        """The sum of each block's values that reach the threshold [num_rows, 1]: float64 [num_rows, num_blocks].

        Rounded alike on every way to it: which way is taken depends on all the rows.
        """
        if not thresholds.any():
            return _block_sums(self.values, self.size)
        num_blocks = int((self.maxima >= thresholds).sum(dim=-1).max())
        if 2 * num_blocks * self.size > self.width:
            return _block_sums(self.values.where(self.values >= thresholds, 0), self.size)
        blocks = torch.topk(self.maxima, num_blocks, dim=-1, sorted=False).indices
        kept = _block_sums(self.read(blocks, thresholds), self.size)
        return torch.zeros_like(self.maxima, dtype=torch.float64).scatter_(1, blocks, kept)

    def read(self, blocks: torch.Tensor, thresholds: torch.Tensor | None = None) -> torch.Tensor:
        """The values of some blocks [num_rows, n] one after the other, 0 for those that do not reach the threshold."""
        places = _places(blocks, self.size)
        is_out = places >= self.width
        values = self.values.gather(1, places.clamp_(max=self.width - 1))
        if thresholds is not None:
            is_out |= values < thresholds
        return values.masked_fill_(is_out, 0)


def largest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maximum of each row of `values` [num_rows, width], and the first place that has it.

    NaN counts as the maximum: this is `values.max(dim=-1)`.
    """
    maximum, block = block_maxima(values, SEARCH_SIZE).max(dim=-1)
    places = _places(block.unsqueeze(1), SEARCH_SIZE).clamp_(max=values.shape[-1] - 1)
    return maximum, block * SEARCH_SIZE + values.gather(1, places).argmax(dim=-1)


def block_maxima(values: torch.Tensor, size: int) -> torch.Tensor:
    """The maximum of every block, the last of which may be shorter: [num_rows, num_blocks]."""
    whole, rest = _whole_blocks(values, size)
    maxima = whole.amax(dim=-1)
    return torch.cat([maxima, rest.amax(dim=-1, keepdim=True)], dim=-1) if rest.shape[-1] else maxima


def _block_sums(values: torch.Tensor, size: int) -> torch.Tensor:
    whole, rest = _whole_blocks(values, size)
    sums = whole.sum(dim=-1)  # in the values' own type: turning all of them into float64 first takes 8 times as long
    if rest.shape[-1]:
        filled = functional.pad(rest, (0, size - rest.shape[-1]))
        sums = torch.cat([sums, filled.sum(dim=-1, keepdim=True)], dim=-1)
    return sums.double()


def _whole_blocks(values: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    num_blocks = values.shape[-1] // size
    num_whole = num_blocks * size
    return values[:, :num_whole].view(len(values), num_blocks, size), values[:, num_whole:]


def _places(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Where the numbers of these blocks [num_rows, n] stand in their rows, [num_rows, n * size]; perhaps beyond it."""
    return (blocks.unsqueeze(-1) * size + torch.arange(size, device=blocks.device)).flatten(1)
