"""Tape: loops that ran one after the other, to be run again by one call.

A decode step on a CPU is some 400 short loops, and what leads to each of them in Python takes as long as a short one. A
tape is what is left when the same loops run again at the same addresses. It is to the loops of numba what a CUDA graph
is to kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loramux_kernels.recording import Arena, Call, NotRecordable, record_calls
from loramux_kernels.team import team_size_address, yield_address


class Tape:
    """Calls of loops. `run` makes them again: they read and write what they did, at the same addresses.

    Whoever has a tape keeps that memory. Belongs to one thread.
    """

    def __init__(self, calls: Sequence[Call], batch: object = None) -> None:
        """batch: what the calls were made for."""
        from loramux_kernels import tape_numba  # numba is imported where it is used

        self._loops = [call.loop for call in calls]  # which keep the machine code
        self._renews = [(index, call.renew) for index, call in enumerate(calls) if call.renew is not None]
        self._play = tape_numba.play()
        sizes = [1 + len(call.numbers) for call in calls]  # before the numbers, the item that comes next
        self._starts = np.cumsum([0, *sizes])
        self._arguments = np.zeros(self._starts[-1], dtype=np.int64)
        self._fresh = self._arguments.copy()  # as they are before a loop begins to count in them
        addresses = self._arguments.ctypes.data + self._arguments.itemsize * self._starts[:-1]
        functions = [call.loop.address for call in calls]
        self._table = np.stack([np.array(functions, dtype=np.int64), addresses], axis=1)
        self._batch = batch  # whose memory the arguments name
        for index, call in enumerate(calls):
            self._write(index, call.numbers)

    def __len__(self) -> int:
        """How many loops there are."""
        return len(self._loops)

    def renew(self, batch: object) -> None:
        """Bring what depends on the batch up to date (see `recording.Renew`), if this is another one, and keep it."""
        if batch is self._batch:
            return
        for index, renew in self._renews:
            self._write(index, renew(batch))
        self._batch = batch

    def run(self) -> None:
        """Run all loops in their order, without the GIL, on the team that torch's operators have."""
        np.copyto(self._arguments, self._fresh)
        self._play.run(len(self._loops), self._table.ctypes.data, 0, team_size_address(), yield_address())

    def _write(self, index: int, numbers: tuple[int, ...]) -> None:
        start, stop = self._starts[index : index + 2]
        self._fresh[start + 1 : stop] = numbers


def record(
    compute: Callable[[], torch.Tensor], arena: Arena, *, is_checked: bool = True
) -> tuple[torch.Tensor, list[Call]]:
    """Compute by loops, whose calls are returned with the result; the rows of ops lie in the arena.

    Raises NotRecordable at anything that torch is asked to compute, or to find memory for. To look costs as much as
    the loops: who has seen that the same code is recordable may leave it.
    """
    checks = _OnlyLoops() if is_checked else nullcontext()  # type: ignore[no-untyped-call]
    with record_calls(arena) as calls, checks:
        return compute(), calls


class _OnlyLoops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets tensors be viewed; everything else raises NotRecordable."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_view(result, args):
            raise NotRecordable(f"torch's {func.overloadpacket.__name__}")
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
