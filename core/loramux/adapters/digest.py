"""The digest of an adapter, its identity: sha256 over config and weights, each behind its length.

Because of the lengths, no bytes can move from one file to the other unseen. It comes to the same from bytes that were
read already and from files that are read in pieces, so a folder in the store can be named by what its reader will find.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loramux.lora.remote import ADAPTER_FILE_NAMES

_CHUNK_NBYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
# O_NONBLOCK: opening a FIFO would wait for a writer for ever.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file's size and sha256."""

    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FolderDigest:
    """The digest of the adapter in a folder, and that of each of its two files by name."""

    digest: str
    files: Mapping[str, FileDigest]


def is_digest(text: str) -> bool:
    """Tell whether the text is a digest as it is written here; nothing else may become part of a path."""
    return _DIGEST.fullmatch(text) is not None


def digest_of_bytes(config: bytes, weights: Sequence[bytes | bytearray | memoryview]) -> str:
    """Return the digest of an adapter whose weights file was read in these pieces."""
    digest = hashlib.sha256(_length(len(config)))
    digest.update(config)
    digest.update(_length(sum(map(len, weights))))
    for piece in weights:
        digest.update(piece)
    return digest.hexdigest()


def digest_of_folder(folder: Path) -> FolderDigest:
    """Read both files once, in pieces, and return their digests.

    Raises OSError when one cannot be read, ValueError when one is no regular file or changes its size meanwhile.
    """
    digest = hashlib.sha256()
    files = {name: _add_file(folder / name, digest.update) for name in ADAPTER_FILE_NAMES}
    return FolderDigest(digest.hexdigest(), files)


def _add_file(path: Path, update: Callable[[bytes | memoryview], None]) -> FileDigest:
    file_digest = hashlib.sha256()
    with os.fdopen(os.open(path, _READ_FLAGS), "rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        update(_length(status.st_size))
        num_read = 0
        buffer = bytearray(min(_CHUNK_NBYTES, status.st_size + 1))
        with memoryview(buffer) as view:
            while count := stream.readinto(view):
                update(view[:count])
                file_digest.update(view[:count])
                num_read += count
    if num_read != status.st_size:
        raise ValueError(f"{path.name} changes its size while it is read")
    return FileDigest(num_read, file_digest.hexdigest())


def _length(nbytes: int) -> bytes:
    return nbytes.to_bytes(8, "little")
