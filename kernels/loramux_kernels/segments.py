"""Segments: which rows of one batch belong to which adapter slot, shared by all layers of a step.

Steps of the same batch may share them too, until a slot has another adapter: ops keep their plans there.

Rows of one segment are contiguous and use one slot; rows in no segment are base rows, which no op touches.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch

PIECE_ROWS: Final = 16  # rows of one item of work; the tiles of every Triton kernel are as high
NUM_LAUNCH_COUNTERS: Final = 2  # of a launch as a whole, before those of its pieces

IntArray = npt.NDArray[np.int32]


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

    def pieces(self) -> IntArray:
        """int32 [pieces, 3]: (slot, first row, rows) of every piece of at most PIECE_ROWS rows, in the rows' order."""
        slots, starts, lengths = (np.asarray(v, dtype=np.int64) for v in (self.slots, self.starts, self.lengths))
        counts = -(-lengths // PIECE_ROWS)
        segment = np.repeat(np.arange(len(slots)), counts)  # of every piece
        offset = (np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)) * PIECE_ROWS
        rows = np.minimum(lengths[segment] - offset, PIECE_ROWS)
        return np.stack([slots[segment], starts[segment] + offset, rows], axis=1).astype(np.int32)

    def work(self, device: torch.device) -> torch.Tensor:
        """The pieces on the device, and nothing else; copied once per batch, from pinned memory to a GPU."""
        return self._on(device)[0]

    def counters(self, device: torch.device) -> torch.Tensor:
        """int32 [NUM_LAUNCH_COUNTERS + pieces]: by what the programs of one launch wait for each other.

        All 0 before a launch and after it, so that the next one finds them so: launches of one batch are on one stream.
        """
        return self._on(device)[1]

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self.plans:
            pieces = self.pieces()
            begin = (pieces.size + 3) // 4 * 4  # of the counters: at a multiple of 16 bytes, whatever the batch
            host = np.zeros(begin + NUM_LAUNCH_COUNTERS + len(pieces), dtype=np.int32)
            host[: pieces.size] = pieces.reshape(-1)
            copy = _pinned(torch.from_numpy(host), device).to(device, non_blocking=True)
            self.plans[device] = copy[: pieces.size].view(-1, 3), copy[begin:]
        return cast("tuple[torch.Tensor, torch.Tensor]", self.plans[device])


class SegmentBuffer:
    """The segments of ever new batches of `num_rows` rows, in device memory whose address and size never change.

    What a captured CUDA graph keeps: the ops take it in the place of Segments, and launch for `capacity` pieces, of
    which those beyond the batch's own have 0 rows. Belongs to the thread that runs the ops.
    """

    def __init__(self, num_rows: int, num_slots: int, device: torch.device | str) -> None:
        self.num_rows = num_rows
        self.num_slots = num_slots
        # as many as batches have whose slots own one segment each: every segment ends in at most one short piece
        self.capacity = min(num_rows, num_slots + num_rows // PIECE_ROWS)
        self._work = torch.zeros(self.capacity, 3, dtype=torch.int32, device=device)
        self._counters = torch.zeros(NUM_LAUNCH_COUNTERS + self.capacity, dtype=torch.int32, device=device)
        self._segments = Segments((), (), (), num_rows)

    def fill(self, segments: Segments | None) -> None:
        """Make these the segments of what is launched next on the current stream; None: every row is a base row.

        One asynchronous copy, from pinned memory that is not written again: nothing is waited for, and filling again at
        once is safe. The batch may have fewer rows than the buffer: the rest are base rows. ValueError names what does
        not fit: rows, a slot, or more pieces than `capacity`.
        """
        segments = Segments((), (), (), self.num_rows) if segments is None else segments
        if segments.num_rows > self.num_rows or segments.max_slot >= self.num_slots:
            raise ValueError(
                f"a buffer of {self.num_rows} rows and {self.num_slots} slots cannot take {segments.num_rows} rows "
                f"and slot {segments.max_slot}"
            )
        pieces = segments.pieces()
        if len(pieces) > self.capacity:
            raise ValueError(f"{len(pieces)} pieces of segments, the buffer has room for {self.capacity}")
        host = _pinned(torch.zeros(self._work.shape, dtype=torch.int32), self._work.device)
        host.numpy()[: len(pieces)] = pieces
        self._work.copy_(host, non_blocking=True)
        self._segments = segments

    def work(self, device: torch.device) -> torch.Tensor:
        """int32 [capacity, 3] on the buffer's device, the same tensor at every call."""
        self._check_device(device)
        return self._work

    def counters(self, device: torch.device) -> torch.Tensor:
        """int32 [NUM_LAUNCH_COUNTERS + capacity], as those of Segments; the same tensor at every call."""
        self._check_device(device)
        return self._counters

    def _check_device(self, device: torch.device) -> None:
        if device.type != self._work.device.type:
            raise ValueError(f"the segments are on {self._work.device}, the rows on {device}")

    @property
    def slots(self) -> tuple[int, ...]:
        """Of the batch's own segments; so for starts, lengths, max_slot and plans."""
        return self._segments.slots

    @property
    def starts(self) -> tuple[int, ...]:
        return self._segments.starts

    @property
    def lengths(self) -> tuple[int, ...]:
        return self._segments.lengths

    @property
    def max_slot(self) -> int:
        return self._segments.max_slot

    @property
    def plans(self) -> dict[Hashable, object]:
        return self._segments.plans


AnySegments = Segments | SegmentBuffer


def _pinned(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor in pinned memory if it goes to a GPU; torch's allocator gives it away again after the copy only."""
    return host.pin_memory() if device.type == "cuda" else host
