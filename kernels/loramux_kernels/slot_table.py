"""SlotTable: where the kernels find the pairs of every slot in every module of a model, in one device tensor.

What changes when an adapter is placed is this tensor's content, never its address: a captured graph stays valid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


class SlotTable:
    """int64 [num_modules, 3, num_slots]: the addresses of every A, of every B, and the ranks.

    The slots are an even number, one more than asked for if need be: so every row begins at a multiple of 16 bytes, and
    one compiled kernel serves all modules. Changes are gathered on the host until `flip`. Belongs to the thread that
    runs the ops.
    """

    def __init__(self, num_modules: int, num_slots: int, device: torch.device | str) -> None:
        shape = (num_modules, 3, num_slots + num_slots % 2)
        self.tensor = torch.zeros(shape, dtype=torch.int64, device=device)
        self.num_flips = 0
        self._host = np.zeros(shape, dtype=np.int64)
        self._is_stale = False

    def set(self, module: int, slot: int, *, a: int, b: int, rank: int) -> None:
        """Note a pair's addresses and rank; zeros for no pair."""
        self._host[module, :, slot] = a, b, rank
        self._is_stale = True

    def set_slot(self, slot: int, modules: IntArray, pairs: IntArray) -> None:
        """Note all pairs of a slot at once: int64 [n, 3], as `set` takes them, for `modules` [n]; others have none."""
        self._host[:, :, slot] = 0
        self._host[modules, :, slot] = pairs
        self._is_stale = True

    def flip(self) -> None:
        """Bring the device up to date in place: one asynchronous copy on the current stream if anything changed."""
        if not self._is_stale:
            return
        host = torch.from_numpy(self._host)
        if self.tensor.is_cuda:
            host = host.pin_memory()  # a block of its own, which nobody writes before it has been copied
        self.tensor.copy_(host, non_blocking=True)
        self.num_flips += 1
        self._is_stale = False
