"""Staging: where one adapter is written before it is in the store, and the room that is kept for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loramux.adapters.failpoints import reached
from loramux.adapters.store_files import remove
from loramux.adapters.store_lease import StoredAdapter, StoreLease
from loramux.adapters.store_manifest import folder_nbytes
from loramux.errors import ConfigInvalid


class Staging:
    """A private folder for one adapter's two files, and the bytes that are reserved for it."""

    def __init__(self, folder: Path, reserved_nbytes: int, publish: Callable[[Staging], StoreLease]) -> None:
        self.folder = folder
        self.reserved_nbytes = reserved_nbytes
        self._publish = publish
        self._lease: StoreLease | None = None
        self._lock = threading.Lock()  # a caller that gives up does not stop a thread that publishes

    def publish(self) -> StoredAdapter:
        """Bring the two files into the store, under their digest; anything else in the folder is dropped.

        Until the staging block ends, the adapter is held. Raises ResolverFailed when the disk refuses, or when the
        folder holds something else than two files of the reserved size.
        """
        with self._lock:
            assert self._lease is None, "published twice"
            self._lease = self._publish(self)
            return self._lease.adapter

    def unwritten_nbytes(self) -> int:
        """Return how much of what is reserved has not come yet."""
        written = 0
        with suppress(FileNotFoundError):
            written = folder_nbytes(self.folder)
        return max(0, self.reserved_nbytes - written)

    def end(self, aside: Path) -> None:
        """Let go of what was published, or remove the folder; moved aside, it takes nothing of a straggling download.

        Waits for a thread that is publishing; one that has not begun finds no folder.
        """
        with self._lock:
            if self._lease is not None:
                self._lease.release()
            self._clear(aside)

    def _clear(self, aside: Path) -> None:
        try:
            self.folder.rename(aside)
        except FileNotFoundError:
            return
        except OSError:
            aside = self.folder
        remove(aside)
        reached("staging_removed")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How many bytes the store may take, and how many of the disk it leaves free; raises ConfigInvalid."""

    max_bytes: int
    min_free_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigInvalid(f"max_disk_bytes must be at least 1, got {self.max_bytes}")
        if self.min_free_bytes < 0:
            raise ConfigInvalid(f"min_free_bytes must be at least 0, got {self.min_free_bytes}")

    def shortage(self, root: Path, *, stored_nbytes: int, stagings: Iterable[Staging], more_nbytes: int) -> int:
        """Return how many bytes must go before `more_nbytes` fit; none when it is 0 or less."""
        stagings = list(stagings)
        reserved = sum(staging.reserved_nbytes for staging in stagings)
        over_quota = stored_nbytes + reserved + more_nbytes - self.max_bytes
        unwritten = sum(staging.unwritten_nbytes() for staging in stagings)
        disk = os.statvfs(root)
        return max(over_quota, self.min_free_bytes + unwritten + more_nbytes - disk.f_bavail * disk.f_frsize)
