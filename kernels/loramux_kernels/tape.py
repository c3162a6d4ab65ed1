"""Tape: loops that ran one after the other, to be run again by one call.

A decode step on a CPU is some three hundred short loops, and what leads to each of them in Python takes as long as a
short one. A tape is what is left when the same loops run again at the same addresses. It is to the loops of numba what
a CUDA graph is to kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_kernels.team import Call, list_calls, team_size_address, yield_address

ALIGNMENT = 64  # bytes: a cache line
CHUNK_NBYTES = 1 << 20


class NotRecordable(Exception):
    """What was recorded computes by something else than loops; the message names it."""


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
                self._chunks.append(torch.empty(max(num_bytes, CHUNK_NBYTES), dtype=torch.uint8))
            else:
                self._chunk += 1
            self._used = 0
        memory = self._chunks[self._chunk][self._used : self._used + num_bytes]
        self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return memory.view(dtype).view(*shape)


class Tape:
    """Calls of loops. `run` makes them again: they read and write what they did, at the same addresses.

    Whoever has a tape keeps that memory. Belongs to one thread.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        from loramux_kernels import tape_numba  # numba is imported where it is used

        self._calls = tuple(calls)  # which keep the machine code
        self._play = tape_numba.play()
        sizes = [1 + len(call.numbers) for call in calls]  # before the numbers, the item that comes next
        self._starts = np.cumsum([0, *sizes])
        self._arguments = np.zeros(self._starts[-1], dtype=np.int64)
        self._fresh = self._arguments.copy()  # as they are before a loop begins to count in them
        addresses = self._arguments.ctypes.data + self._arguments.itemsize * self._starts[:-1]
        functions = [call.loop.address for call in calls]
        self._table = np.stack([np.array(functions, dtype=np.int64), addresses], axis=1)
        self._batch: object = None  # whose memory the arguments name
        for index, call in enumerate(calls):
            self._write(index, call.numbers)

    def __len__(self) -> int:
        """How many loops there are."""
        return len(self._calls)

    def renew(self, batch: object) -> None:
        """Bring what depends on the batch up to date: see `team.Renew`. The tape keeps the batch."""
        self._batch = batch
        for index, call in enumerate(self._calls):
            if call.renew is not None:
                self._write(index, call.renew(batch))

    def run(self) -> None:
        """Run all loops in their order, without the GIL, on the team that torch's operators have."""
        np.copyto(self._arguments, self._fresh)
        self._play.run(len(self._calls), self._table.ctypes.data, 0, team_size_address(), yield_address())

    def _write(self, index: int, numbers: tuple[int, ...]) -> None:
        start, stop = self._starts[index : index + 2]
        self._fresh[start + 1 : stop] = numbers


def record(compute: Callable[[], torch.Tensor], arena: Arena) -> tuple[torch.Tensor, list[Call]]:
    """Compute by loops, whose calls are returned with the result; every new tensor comes from the arena.

    Raises NotRecordable at anything else that torch is asked to compute.
    """
    with list_calls() as calls, _OnlyLoops(arena):
        return compute(), calls


class _OnlyLoops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets tensors be made, in the arena, and be viewed; everything else raises NotRecordable."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arena = arena

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("empty", "new_empty", "empty_like"):
            return self._arena.empty(result.shape, result.dtype)
        if not _is_view(result, args):
            raise NotRecordable(f"torch's {name}")
        return result


def _is_view(result: object, args: tuple[Any, ...]) -> bool:
    """Whether a result is in the memory of the first argument, as that of a reshape may be or not be.

    The first argument itself is what an operator in place returns.
    """
    if not args or not isinstance(args[0], torch.Tensor) or result is args[0]:
        return False
    results = result if isinstance(result, tuple | list) else (result,)
    memory = args[0].untyped_storage().data_ptr()
    return all(isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() == memory for one in results)
