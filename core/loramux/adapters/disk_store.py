"""DiskStore: adapters fetched from remote sources, on the disk under their digest, within a quota.

What is in the store is whole: an adapter is written in staging, brought to the disk, and appears there by one rename.
So the process may die at any moment: what is torn is in staging, and staging is emptied at the next start. The bytes of
all adapters and of all reservations together never exceed the quota.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loramux.adapters.digest import is_digest
from loramux.adapters.failpoints import reached
from loramux.adapters.store_check import StoredEntry, entries, verify
from loramux.adapters.store_contents import StoreContents
from loramux.adapters.store_files import disk_faults, remove, remove_leftovers, sync_folder
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_lease import Holds, StoredAdapter, StoreLease
from loramux.adapters.store_lock import StoreLock
from loramux.adapters.store_manifest import MAX_MANIFEST_NBYTES, folder_nbytes, seal
from loramux.adapters.store_refs import StoredRef, StoreRefs
from loramux.adapters.store_staging import Staging, StoreLimits
from loramux.errors import ConfigInvalid, ResolverFailed, StoreFull
from loramux.metrics.state import TierState

__all__ = [
    "DEFAULT_MAX_DISK_BYTES",
    "DEFAULT_MIN_FREE_BYTES",
    "DiskStore",
    "Staging",
    "StoreLease",
    "StoredAdapter",
    "StoredEntry",
    "StoredRef",
]

DEFAULT_MAX_DISK_BYTES = 50 * 1024**3
DEFAULT_MIN_FREE_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc` has removed."""

    num_corrupt: int
    num_refs: int
    num_leftovers: int
    num_evicted: int
    freed_nbytes: int


class DiskStore:
    """One root, owned by this process from `open` to `close`. Thread-safe; everything but a lease's release blocks.

    What the disk refuses becomes ResolverFailed, not to be tried again for half a minute.
    """

    def __init__(self, layout: StoreLayout, limits: StoreLimits, process_lock: StoreLock) -> None:
        self._layout = layout
        self._limits = limits
        self._process_lock = process_lock
        self._num_leftovers = remove_leftovers(layout.tmp)
        self._holds = Holds()
        self._refs = StoreRefs(layout)
        self._lock = threading.Lock()  # guards what is in the store and what is reserved
        self._contents = StoreContents(layout, self._holds)
        self._stagings: set[Staging] = set()

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        max_bytes: int = DEFAULT_MAX_DISK_BYTES,
        min_free_bytes: int = DEFAULT_MIN_FREE_BYTES,
    ) -> DiskStore:
        """Take the store at `root`, which is made if need be, and remove what dead runs left in staging.

        Raises ConfigInvalid when another process has it, or when the folder cannot be used.
        """
        limits = StoreLimits(max_bytes, min_free_bytes)
        layout = StoreLayout(Path(root).expanduser().absolute())
        with ExitStack() as undo:
            try:
                layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                process_lock = StoreLock(layout.lock)
                undo.callback(process_lock.release)
                for folder in (layout.store, layout.refs, layout.tmp):
                    folder.mkdir(mode=0o700, exist_ok=True)
                sync_folder(layout.root)
                store = cls(layout, limits, process_lock)
            except OSError as exc:
                raise ConfigInvalid(f"the adapter store {str(layout.root)!r} cannot be used: {exc.strerror}") from exc
            undo.pop_all()
        return store

    def close(self) -> None:
        """Let another process have the store; nothing may be staged or held any more."""
        self._process_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        return self._layout.root

    @property
    def nbytes(self) -> int:
        """Return what all adapters in the store take."""
        return self._contents.nbytes

    def state(self) -> TierState:
        """Say how many adapters there are, what they take, and how many had to leave; never waits."""
        contents = self._contents
        return TierState(
            num_adapters=contents.num_adapters, nbytes=contents.nbytes, num_evictions=contents.num_evictions
        )

    @property
    def reserved_nbytes(self) -> int:
        """Return what is kept free for adapters on their way."""
        with self._lock:
            return sum(staging.reserved_nbytes for staging in self._stagings)

    # --- the way into the store

    @contextmanager
    def stage(self, nbytes: int) -> Iterator[Staging]:
        """Keep room for two files of `nbytes` together, and give a folder for them; both end with the block.

        Adapters that nobody holds are evicted for it, longest unused first. Raises StoreFull when that cannot help.
        """
        staging = Staging(self._layout.new_tmp(), nbytes + MAX_MANIFEST_NBYTES, self._publish)
        with self._lock, disk_faults():
            self._make_room(staging.reserved_nbytes)
            self._stagings.add(staging)
        try:
            with disk_faults():
                staging.folder.mkdir(mode=0o700)
            reached("staging_created")
            yield staging
        finally:
            staging.end(aside=self._layout.new_tmp())
            with self._lock:
                self._stagings.discard(staging)

    def _publish(self, staging: Staging) -> StoreLease:
        with disk_faults():
            try:
                manifest = seal(staging.folder)
            except ValueError as exc:
                raise ResolverFailed(f"what was fetched cannot be stored: {exc}", retryable=False) from exc
            if folder_nbytes(staging.folder) > staging.reserved_nbytes:
                raise ResolverFailed("what was fetched is larger than the room kept for it", retryable=False)
            with self._lock:
                adapter = self._contents.find(manifest.digest)
                if adapter is None:
                    adapter = self._contents.add(staging.folder, manifest.digest)
                    self._stagings.discard(staging)  # from here on it counts as an adapter
                lease = self._holds.take(adapter)
            try:
                sync_folder(adapter.folder.parent)
            except OSError:
                lease.release()
                raise
        reached("shard_synced")
        return lease

    def _make_room(self, nbytes: int) -> None:
        """Evict what `nbytes` more bytes need; nothing, when they would not fit after all."""
        shortage = self._shortage(nbytes)
        if 0 < shortage <= self._contents.evictable_nbytes():
            self._contents.evict(shortage)
            shortage = self._shortage(nbytes)
        if shortage > 0:
            raise StoreFull(
                f"the adapter store has no room for {nbytes} more bytes: all that is not in use would be too little "
                f"(quota {self._limits.max_bytes}, kept free on the disk {self._limits.min_free_bytes})"
            )

    def _shortage(self, nbytes: int) -> int:
        return self._limits.shortage(
            self.root, stored_nbytes=self._contents.nbytes, stagings=self._stagings, more_nbytes=nbytes
        )

    # --- what is there

    def hold(self, digest: str) -> StoreLease | None:
        """Keep an adapter in the store and mark it as used; None when it is not there, or was not whole: then it goes.

        The lease must be released.
        """
        if not is_digest(digest):
            return None
        with self._lock, disk_faults():
            adapter = self._contents.find(digest)
            return None if adapter is None else self._holds.take(adapter)

    def discard(self, digest: str) -> None:
        """Remove an adapter whose content turned out wrong, even while it is held: nobody should read it."""
        if is_digest(digest):
            with self._lock, disk_faults():
                self._contents.take_out(digest)

    def find_ref(self, base_model_name: str, lora_name: str) -> StoredRef | None:
        """Return which adapter the name means; None when it is unknown, or means one that is gone."""
        with disk_faults():
            return self._refs.find(base_model_name, lora_name)

    def set_ref(self, base_model_name: str, lora_name: str, ref: StoredRef) -> None:
        """Let the name mean an adapter, from now on and after a restart."""
        with disk_faults():
            self._refs.set(base_model_name, lora_name, ref)

    def remove_ref(self, base_model_name: str, lora_name: str) -> None:
        """Forget the name, if it is known; the adapter stays."""
        with disk_faults():
            self._refs.remove(base_model_name, lora_name)

    # --- care

    def entries(self) -> Iterator[StoredEntry]:
        """Walk over the adapters, each checked by its manifest and its sizes."""
        return entries(self._layout)

    def verify(self) -> Iterator[StoredEntry]:
        """Walk over the adapters, each read and hashed."""
        return verify(self._layout)

    def gc(self) -> Collected:
        """Remove what is corrupt, what leads nowhere, what does not belong here, and what exceeds the quota."""
        with disk_faults():
            nbytes_before = self.nbytes
            corrupt = [entry.digest for entry in self.verify() if entry.fault is not None]
            for digest in corrupt:
                self.discard(digest)
            strays = list(self._layout.strays())
            for path in strays:
                remove(path)
            with self._lock:
                num_evicted = self._contents.evict(self._shortage(0))
            num_refs = self._refs.sweep()
        num_leftovers, self._num_leftovers = self._num_leftovers + len(strays), 0
        return Collected(len(corrupt), num_refs, num_leftovers, num_evicted, nbytes_before - self.nbytes)
