"""PrefillBatch: which rows of one batch are several new tokens of one sequence, and where its blocks are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Rows `starts[i] : starts[i] + counts[i]` of a batch are a chunk of one sequence, from position `contexts[i]` on.

    block_tables: int64 [num_chunks, max_blocks] on the device, the blocks of each chunk's sequence, those of the new
    tokens included; entries beyond them are not read. Built once per step, shared by all layers.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    contexts: tuple[int, ...]
    block_tables: torch.Tensor
    _work: dict[tuple[int, torch.dtype], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.counts) == len(self.contexts) == len(self.block_tables):
            numbers = len(self.starts), len(self.counts), len(self.contexts), len(self.block_tables)
            raise ValueError(f"starts, counts, contexts and block_tables differ in number: {numbers}")

    def work(self, num_tokens: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """[pieces, 4] on the device: (chunk, first row, rows, first position), at most `num_tokens` rows each.

        Made and copied once per batch, in one transfer, from pinned memory where the device is a GPU.
        """
        key = (num_tokens, dtype)
        if key not in self._work:
            self._work[key] = self._make_work(num_tokens, dtype)
        return self._work[key]

    def _make_work(self, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
        starts, counts, contexts = (np.asarray(v, dtype=np.int64) for v in (self.starts, self.counts, self.contexts))
        pieces = -(-counts // num_tokens)
        chunk = np.repeat(np.arange(len(counts)), pieces)  # of every piece
        offset = (np.arange(len(chunk)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * num_tokens
        columns = (
            chunk,
            starts[chunk] + offset,
            np.minimum(counts[chunk] - offset, num_tokens),
            contexts[chunk] + offset,
        )
        work = torch.from_numpy(np.stack(columns, axis=1)).to(dtype)
        device = self.block_tables.device
        return work.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else work.to(device)
