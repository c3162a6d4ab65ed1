"""What the C library does with memory that a step has freed, and how large the pages are that weights lie in."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# <bits/mman-linux.h>
_MADV_COLLAPSE = 25  # Linux 6.1

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

HUGE_PAGE_NBYTES = 2 * 2**20
MIN_SHARE = 0.9  # of a huge page that is in memory already: so much more memory it may take, at most
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


def gather_into_huge_pages() -> int:
    """Have Linux move what this process holds in memory into huge pages; returns the bytes that were to be moved.

    A step reads all weights, which are more pages of 4 KiB than the processor remembers the places of: looking them up
    again is a tenth of a step. For weights to be moved, call it when they are there, from any thread: memory can be
    used while it is moved. Where the system cannot (before Linux 6.1, no room for huge pages, another one), it stays.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        ranges = list(_own_memory(Path("/proc/self/maps").read_text()))
    except (OSError, TypeError):
        return 0
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    used = [piece for start, stop in ranges for piece in _used(libc, start, stop)]
    for start, stop in used:
        libc.madvise(start, stop - start, mmap.MADV_HUGEPAGE)
        libc.madvise(start, stop - start, _MADV_COLLAPSE)
    return sum(stop - start for start, stop in used)


def _own_memory(maps: str) -> Iterator[tuple[int, int]]:
    """The heap and anonymous mappings of /proc/self/maps, cut to whole huge pages."""
    for line in maps.splitlines():
        addresses, access, *rest = line.split()
        is_anonymous = len(rest) == len(("offset", "device", "inode")) or rest[-1] == "[heap]"
        start, stop = (int(address, 16) for address in addresses.split("-"))
        start, stop = -(-start // HUGE_PAGE_NBYTES) * HUGE_PAGE_NBYTES, stop // HUGE_PAGE_NBYTES * HUGE_PAGE_NBYTES
        if access == "rw-p" and is_anonymous and start < stop:
            yield start, stop


def _used(libc: ctypes.CDLL, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The runs of huge pages that are in memory for the most part: what nobody has written must not take memory."""
    pages = np.zeros((stop - start) // mmap.PAGESIZE, dtype=np.uint8)
    if libc.mincore(start, stop - start, pages.ctypes.data) != 0:
        return
    share = (pages & 1).reshape(-1, HUGE_PAGE_NBYTES // mmap.PAGESIZE).mean(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], share > MIN_SHARE, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        yield start + first * HUGE_PAGE_NBYTES, start + last * HUGE_PAGE_NBYTES
