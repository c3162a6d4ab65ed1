"""StoreLease and Holds: which stored adapters somebody is using; those are never evicted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """One whole adapter on the disk; `nbytes` counts all three files."""

    digest: str
    folder: Path
    nbytes: int


class StoreLease:
    """Keeps one stored adapter where it is until `release`, which is idempotent and never waits for the disk."""

    def __init__(self, adapter: StoredAdapter, release: Callable[[], None]) -> None:
        self.adapter = adapter
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let go; calling it again does nothing."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Holds:
    """How many leases each digest has. The lock is its own and never held over file work: letting go is immediate."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._counts

    def digests(self) -> list[str]:
        """Return what is held now."""
        with self._lock:
            return list(self._counts)

    def take(self, adapter: StoredAdapter) -> StoreLease:
        """Hold an adapter that is in the store."""
        with self._lock:
            self._counts[adapter.digest] += 1
        return StoreLease(adapter, lambda: self._let_go(adapter.digest))

    def _let_go(self, digest: str) -> None:
        with self._lock:
            self._counts[digest] -= 1
            if not self._counts[digest]:
                del self._counts[digest]
