"""StoreContents: the adapters in a disk store, what they take in all, and which of them leaves first.

Adapters come and go by one rename each, so that nobody sees a part of one. What is kept in memory does not grow with
their number: when each was used last stands on the disk, as the time of its manifest.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections import deque
from pathlib import Path

from loramux.adapters.failpoints import reached
from loramux.adapters.store_files import remove, sync_folder
from loramux.adapters.store_layout import StoreLayout, last_used_ns
from loramux.adapters.store_lease import Holds, StoredAdapter
from loramux.adapters.store_manifest import MANIFEST_NAME, folder_nbytes, read_manifest

logger = logging.getLogger(__name__)

NUM_CANDIDATES = 64
"""How many of the least recently used adapters one walk over the store finds."""


class StoreContents:
    """Belongs to the process that holds the store's lock; its owner lets in one thread at a time.

    Raises OSError when the disk refuses.
    """

    def __init__(self, layout: StoreLayout, holds: Holds) -> None:
        self._layout = layout
        self._count()
        self.num_evictions = 0
        self._holds = holds
        self._candidates: deque[tuple[int, str]] = deque()  # for eviction, longest unused first

    def find(self, digest: str) -> StoredAdapter | None:
        """Return the adapter and mark it as used; one that is not whole is taken out."""
        folder = self._layout.folder(digest)
        try:
            read_manifest(folder)
            nbytes = folder_nbytes(folder)
        except FileNotFoundError:
            return None
        except (ValueError, NotADirectoryError) as exc:
            logger.warning("torn adapter removed from the store digest=%s reason=%s", digest, exc)
            self.take_out(digest)
            self._count()  # the sizes that were counted once are not known any more
            return None
        _mark_used(folder)
        return StoredAdapter(digest, folder, nbytes)

    def add(self, sealed: Path, digest: str) -> StoredAdapter:
        """Move a sealed folder here, where nothing has its digest yet; its shard must be synced after that."""
        folder = self._layout.folder(digest)
        self._make_shard(folder.parent)
        nbytes = folder_nbytes(sealed)
        _mark_used(sealed)
        sealed.rename(folder)
        self.nbytes += nbytes
        self.num_adapters += 1
        reached("adapter_renamed")
        return StoredAdapter(digest, folder, nbytes)

    def take_out(self, digest: str) -> int:
        """Remove an adapter, whole or not; return how many bytes that frees, 0 when it is not there."""
        folder = self._layout.folder(digest)
        aside = self._layout.new_tmp()
        try:
            nbytes = folder_nbytes(folder) if folder.is_dir() else 0
            folder.rename(aside)
        except FileNotFoundError:
            return 0
        self.nbytes -= nbytes
        self.num_adapters -= 1
        reached("adapter_taken_out")
        remove(aside)
        reached("adapter_removed")
        return nbytes

    def evictable_nbytes(self) -> int:
        """Return what the adapters take that nobody holds."""
        folders = map(self._layout.folder, self._holds.digests())
        return self.nbytes - sum(folder_nbytes(folder) for folder in folders if folder.is_dir())

    def evict(self, nbytes: int) -> int:
        """Remove adapters, longest unused first, until that has freed so many bytes; return how many were removed.

        It ends early when all that are left are held.
        """
        num_evicted = num_freed = 0
        while num_freed < nbytes and (digest := self._next_victim()) is not None:
            num_freed += self.take_out(digest)
            num_evicted += 1
            self.num_evictions += 1
            logger.info("adapter evicted from the store digest=%s", digest)
        return num_evicted

    def _next_victim(self) -> str | None:
        """Return what has not been used for longest; candidates used since the last walk are candidates no more."""
        while True:
            while self._candidates:
                used_ns, digest = self._candidates.popleft()
                folder = self._layout.folder(digest)
                if digest not in self._holds and folder.is_dir() and last_used_ns(folder) == used_ns:
                    return digest
            unheld = ((used_ns, digest) for used_ns, digest in self._layout.uses() if digest not in self._holds)
            self._candidates.extend(heapq.nsmallest(NUM_CANDIDATES, unheld))
            if not self._candidates:
                return None

    def _count(self) -> None:
        usage = self._layout.usage()
        self.num_adapters, self.nbytes = usage.num_adapters, usage.nbytes

    def _make_shard(self, shard: Path) -> None:
        try:
            shard.mkdir(mode=0o700)
        except FileExistsError:
            return
        reached("shard_created")
        sync_folder(self._layout.store)


def _mark_used(folder: Path) -> None:
    now = time.time_ns()  # the system's own stamp is too coarse to tell two uses apart
    os.utime(folder / MANIFEST_NAME, ns=(now, now))
    reached("use_marked")
