"""Keeps the garbage collector out of stretches that only make what stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage meanwhile, in any thread.

    Importing torch and transformers makes a million objects and drops next to none; looking through all of them time
    and again takes a fifth of the import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
