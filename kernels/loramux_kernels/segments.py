"""Segments: which rows of one batch belong to which adapter slot, built once per step and shared by all layers.

Rows of one segment are contiguous and use one slot; rows in no segment are base rows, which no op touches.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Segments:
    """Rows `starts[i] : starts[i] + lengths[i]` of a batch of `num_rows` rows use adapter slot `slots[i]`.

    Segments ascend by row, do not overlap and are not empty; one slot may own several.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    num_rows: int
    max_slot: int = field(init=False, repr=False, compare=False)  # -1 when every row is a base row
    plans: dict[Hashable, object] = field(default_factory=dict, init=False, repr=False, compare=False)  # of the ops

    def __post_init__(self) -> None:
        if not len(self.slots) == len(self.starts) == len(self.lengths):
            counts = len(self.slots), len(self.starts), len(self.lengths)
            raise ValueError(f"slots, starts and lengths differ in number: {counts}")
        if any(slot < 0 for slot in self.slots):
            raise ValueError(f"slots must be 0 or more, base rows are in no segment: slots={self.slots}")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"a segment has at least one row: lengths={self.lengths}")
        stops = self.stops
        if any(stop > start for stop, start in zip(stops, self.starts[1:], strict=False)):
            raise ValueError(f"segments overlap or descend: starts={self.starts}, lengths={self.lengths}")
        if self.starts and (self.starts[0] < 0 or stops[-1] > self.num_rows):
            raise ValueError(f"segments leave the batch of {self.num_rows} rows: {self.starts=}, {self.lengths=}")

        object.__setattr__(self, "max_slot", max(self.slots, default=-1))  # read by every op: computed once

    @property
    def stops(self) -> tuple[int, ...]:
        """One past each segment's last row."""
        return tuple(start + length for start, length in zip(self.starts, self.lengths, strict=True))

    def work(self, block_rows: int, device: torch.device) -> torch.Tensor:
        """int32 [chunks, 3] on the device: (slot, first row, rows) of every piece of at most `block_rows` rows.

        Made and copied once per batch, in one transfer, from pinned memory where the device is a GPU.
        """
        key = (block_rows, device)
        if key not in self.plans:
            self.plans[key] = self._make_work(block_rows, device)
        return cast("torch.Tensor", self.plans[key])

    def _make_work(self, block_rows: int, device: torch.device) -> torch.Tensor:
        slots, starts, lengths = (np.asarray(v, dtype=np.int64) for v in (self.slots, self.starts, self.lengths))
        pieces = -(-lengths // block_rows)
        segment = np.repeat(np.arange(len(slots)), pieces)  # of every piece
        offset = (np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * block_rows
        rows = np.minimum(lengths[segment] - offset, block_rows)
        work = torch.from_numpy(np.stack([slots[segment], starts[segment] + offset, rows], axis=1).astype(np.int32))
        if device.type != "cuda":
            return work.to(device)
        return work.pin_memory().to(device, non_blocking=True)
