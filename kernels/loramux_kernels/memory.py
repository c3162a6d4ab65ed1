"""Addresses from the system, whose memory it hands out as it is first written."""

from __future__ import annotations

import mmap

import torch

ALIGNMENT = 64  # bytes: a cache line
CHUNK_NBYTES = 256 * 2**20  # of addresses; what is not used takes no memory


def reserve(num_bytes: int) -> torch.Tensor:
    """Zeros, uint8 [num_bytes], that take memory only where they are written, in huge pages where there are some.

    Private memory gets huge pages; shared memory, which is what mmap gives by itself, does not by most settings, and a
    forked process would write to it too.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
