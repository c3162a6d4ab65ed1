"""What the C library does with the memory that a step has freed."""

from __future__ import annotations

import ctypes

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
