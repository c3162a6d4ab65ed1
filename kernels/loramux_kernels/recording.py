"""What is written down while loops are recorded, and the memory that recorded rows lie in.

A tape (`tape`) runs again what was written down. Ops take the memory of their results from `new_rows`: torch's, or an
arena's while they are recorded, where it stays.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from loramux_kernels.memory import ALIGNMENT, CHUNK_NBYTES, reserve

if TYPE_CHECKING:
    from loramux_kernels.team import Loop

Renew = Callable[[Any], tuple[int, ...]]
"""The number of items and the arguments of a call for another batch; as many as the call had."""


class NotRecordable(Exception):
    """What was recorded computes by something else than loops; the message names it."""


class Call(NamedTuple):
    """What a loop was run with. numbers: of items, then the arguments; renew: None where every batch has the same."""

    loop: Loop
    numbers: tuple[int, ...]
    renew: Renew | None


class Arena:
    """Memory that is given out from the front to the back, and again from the front after `rewind`.

    It grows, and is never given back: what was recorded at an address finds it there. Belongs to one thread.
    """

    def __init__(self) -> None:
        self._chunks: list[torch.Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Give out the same memory again."""
        self._chunk = self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor of whatever numbers were left there."""
        num_bytes = math.prod(shape) * dtype.itemsize
        while self._chunk == len(self._chunks) or self._used + num_bytes > len(self._chunks[self._chunk]):
            if self._chunk == len(self._chunks):
                # powers of two: ever larger tensors would else need a chunk each
                self._chunks.append(reserve(max(1 << (num_bytes - 1).bit_length(), CHUNK_NBYTES)))
            else:
                self._chunk += 1
            self._used = 0
        memory = self._chunks[self._chunk][self._used : self._used + num_bytes]
        self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return memory.view(dtype).view(*shape)


class _Recording(threading.local):
    """The recording under way in this thread: the calls so far, and where new rows lie."""

    calls: list[Call] | None = None
    arena: Arena | None = None


recording = _Recording()


@contextmanager
def record_calls(arena: Arena) -> Iterator[list[Call]]:
    """Write down what this thread's loops are run with, until the block ends. Loops compute as ever."""
    calls: list[Call] = []
    try:
        recording.calls, recording.arena = calls, arena
        yield calls
    finally:
        recording.calls = recording.arena = None


def is_recording() -> bool:
    """Whether what runs now is to run again for other batches: what one batch has no use for is then run as well."""
    return recording.calls is not None


def new_rows(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """A contiguous tensor of the dtype and device of another, for the results of an op."""
    if recording.arena is None:
        return like.new_empty(shape)
    return recording.arena.empty(shape, like.dtype)
