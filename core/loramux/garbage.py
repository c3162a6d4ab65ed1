"""Keeps the garbage collector out of stretches that only make what stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage meanwhile, in any thread.

    Importing torch and transformers makes half a million objects and drops next to none; looking through all of them
    time and again takes a fifth of the import, and a third of a second each time while a model is loaded.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            _count_as_old()
            gc.enable()


def _count_as_old() -> None:
    """Move all objects to the oldest generation without looking at them, as the next small collection would."""
    if gc.get_freeze_count() == 0:  # else thawing would thaw what somebody else froze
        gc.freeze()
        gc.unfreeze()
