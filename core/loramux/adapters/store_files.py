"""Files that survive a power failure: what is written is brought to the disk before anything refers to it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loramux.adapters.failpoints import reached
from loramux.errors import ResolverFailed

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 30.0
"""A disk that refuses is left alone for so long."""

_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_ONLY = 0o444


@contextmanager
def disk_faults() -> Iterator[None]:
    """Turn what the disk refuses (full, over quota, broken) into ResolverFailed, without the path."""
    try:
        yield
    except OSError as exc:
        raise ResolverFailed(
            f"the adapter store cannot use its disk: {exc.strerror or type(exc).__name__}",
            retryable=False,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        ) from exc


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; it is not on the disk before `seal_file`."""
    with os.fdopen(os.open(path, _WRITE_FLAGS, 0o600), "wb") as stream:
        stream.write(content)


def seal_file(path: Path) -> None:
    """Make a file read-only and bring it to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, _READ_ONLY)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names the folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; what cannot be removed is logged and stays for the next start."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as exc:
        logger.warning("cannot be removed path=%s reason=%s", path, exc.strerror)


def remove_leftovers(folder: Path) -> int:
    """Remove all that is in the folder; return how many things that were."""
    num_leftovers = 0
    for path in folder.iterdir():
        remove(path)
        reached("leftover_removed")
        num_leftovers += 1
    if num_leftovers:
        logger.info("leftovers removed folder=%s num_leftovers=%s", folder, num_leftovers)
    return num_leftovers
