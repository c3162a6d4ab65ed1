"""Failpoints: the named moments between two steps of the disk store, where a test can make the process die.

Without a handler, which only a test installs, passing one costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILPOINTS = (
    "leftover_removed",  # opening: one thing that a dead run left in staging is gone
    "staging_created",
    "adapter_hashed",
    "manifest_written",
    "file_synced",
    "folder_synced",
    "shard_created",
    "adapter_renamed",  # the adapter is in the store
    "shard_synced",
    "staging_removed",
    "ref_written",
    "ref_synced",
    "ref_replaced",  # the name is known
    "refs_synced",
    "ref_removed",
    "use_marked",
    "adapter_taken_out",  # the adapter is no longer in the store, but still on the disk
    "adapter_removed",
)

_handler: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Say that the failpoint of this name is passed."""
    if _handler is not None:
        assert name in FAILPOINTS, name
        _handler(name)


@contextmanager
def installed(handler: Callable[[str], None]) -> Iterator[None]:
    """Call `handler` with the name of every failpoint that is passed, in the thread that passes it; for tests."""
    global _handler  # one attribute is all that production code pays for
    assert _handler is None
    _handler = handler
    try:
        yield
    finally:
        _handler = None
