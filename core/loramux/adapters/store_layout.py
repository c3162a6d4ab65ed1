"""StoreLayout: where everything lies below the root of a disk store.

    lock                       held by the one process that may change the store
    store/<2 hex>/<digest>/    one adapter: its two files and manifest.json, read-only, never changed
    refs/<hex>.json            a name: which adapter, from which source; the file is called by a hash of the name
    tmp/<random>               what is being written or removed; nothing in it outlives the process that made it

No name that a client or a source has chosen becomes part of a path.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loramux.adapters.digest import is_digest
from loramux.adapters.store_manifest import MANIFEST_NAME, folder_nbytes

DEFAULT_STORE_ROOT = "~/.cache/loramux/store"
_SHARD_CHARACTERS = 2


@dataclass(frozen=True, slots=True)
class Usage:
    """What is in a store."""

    num_adapters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The paths below one root, and walks over them; nothing here changes the disk."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def folder(self, digest: str) -> Path:
        """Return where the adapter of this digest is, if it is there."""
        assert is_digest(digest), digest
        return self.store / digest[:_SHARD_CHARACTERS] / digest

    def new_tmp(self) -> Path:
        """Return a path in tmp that nobody else has."""
        return self.tmp / uuid.uuid4().hex

    def folders(self) -> Iterator[Path]:
        """Walk over the adapters, whole or not; the names of one shard are in memory at a time."""
        for shard in _names(self.store):
            for name in _names(self.store / shard):
                if _belongs(name, shard):
                    yield self.store / shard / name

    def strays(self) -> Iterator[Path]:
        """Walk over what has no place in the store or among the refs."""
        for shard in _names(self.store):
            if not (self.store / shard).is_dir():
                yield self.store / shard
            for name in _names(self.store / shard):
                path = self.store / shard / name
                if not _belongs(name, shard) or not path.is_dir():
                    yield path
        yield from (self.refs / name for name in _names(self.refs) if not is_ref_name(name))

    def ref_paths(self) -> Iterator[Path]:
        """Walk over the refs, read or not."""
        return (self.refs / name for name in _names(self.refs) if is_ref_name(name))

    def usage(self) -> Usage:
        """Count all adapters and sum up what they take: one stat per file, and none is opened."""
        num_adapters = nbytes = 0
        for folder in self.folders():
            with suppress(FileNotFoundError, NotADirectoryError):
                nbytes += folder_nbytes(folder)
                num_adapters += 1
        return Usage(num_adapters, nbytes)

    def uses(self) -> Iterator[tuple[int, str]]:
        """Walk over (when the adapter was used last, in ns; its digest)."""
        return ((last_used_ns(folder), folder.name) for folder in self.folders())


def is_ref_name(name: str) -> bool:
    """Tell whether a file of this name among the refs can be one."""
    stem, dot, suffix = name.partition(".")
    return is_digest(stem) and dot + suffix == ".json"


def last_used_ns(folder: Path) -> int:
    """Return when the adapter in the folder was used last; 0, longest ago, for one without a manifest."""
    try:
        return (folder / MANIFEST_NAME).stat().st_mtime_ns
    except OSError:
        return 0


def _belongs(name: str, shard: str) -> bool:
    return is_digest(name) and name[:_SHARD_CHARACTERS] == shard


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
