"""StoreLock: one process at a time may change a disk store; the system lets go of the lock when that process dies."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from loramux.errors import ConfigInvalid


class StoreLock:
    """The exclusive lock on a store's lock file; raises ConfigInvalid when another process has it, or this one."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            if exc.errno != errno.EWOULDBLOCK:
                raise
            raise ConfigInvalid(
                f"the adapter store {str(path.parent)!r} is in use by another process; give each one a root of its own"
            ) from exc
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another process have the store; calling it again does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
