"""What the C library does with memory that a step has freed, and how large the pages are that weights lie in."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

from loramux_kernels.memory import ALIGNMENT, CHUNK_NBYTES, reserve

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

MAX_KEPT_NBYTES = 512 * 2**20
LARGEST_HEAP_NBYTES = 32 * 2**20
"""glibc takes no more than this for the size from which on a block gets pages of its own."""


def keep_freed_memory() -> None:
    """Let the process keep up to MAX_KEPT_NBYTES of freed memory rather than give its pages back at once.

    A step makes and drops tensors of tens of megabytes. glibc gives such memory back to the system and asks for it
    again, and the system fills every page with zeros anew: a tenth of a prefill step. Where the C library is another
    one, or an allocator was preloaded, this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc; on Windows CDLL takes no None
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST_HEAP_NBYTES)
    mallopt(_M_TRIM_THRESHOLD, MAX_KEPT_NBYTES)


class HugePages:
    """Gives out memory in huge pages, where the system has them, for what every step reads.

    Weights are more pages of 4 KiB than a processor remembers the places of: looking them up again is a tenth of a
    step. And each small page that is first used in the middle of a step is a fault of several microseconds.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose memory the system hands out as it is first written, and gets back with its neighbours'."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if len(self._chunk) < num_bytes:
            self._chunk = reserve(max(num_bytes, CHUNK_NBYTES))
        memory, self._chunk = self._chunk[:num_bytes], self._chunk[-(-num_bytes // ALIGNMENT) * ALIGNMENT :]
        return memory.view(dtype).view(*shape)
