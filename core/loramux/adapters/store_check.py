"""What a disk store holds, and whether it is whole: read-only questions, which need no lock.

They may be asked while a server changes the store. What it takes out in the meantime is skipped, and no adapter is ever
seen half-written: folders come and go whole.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loramux.adapters.digest import digest_of_folder
from loramux.adapters.store_layout import StoreLayout, last_used_ns
from loramux.adapters.store_manifest import folder_nbytes, read_manifest


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One adapter of the store. `last_used` is in Unix seconds; `fault` says why it is corrupt, None when it is not."""

    digest: str
    nbytes: int
    last_used: float
    fault: str | None


def entries(layout: StoreLayout) -> Iterator[StoredEntry]:
    """Walk over the adapters, each checked by its manifest and its sizes."""
    return _walk(layout, _check_sizes)


def verify(layout: StoreLayout) -> Iterator[StoredEntry]:
    """Walk over the adapters, each read and hashed."""
    return _walk(layout, _check_content)


def _walk(layout: StoreLayout, check: Callable[[Path], None]) -> Iterator[StoredEntry]:
    for folder in layout.folders():
        entry = _entry(folder, check)
        if entry is not None:
            yield entry


def _entry(folder: Path, check: Callable[[Path], None]) -> StoredEntry | None:
    fault = None
    try:
        nbytes = folder_nbytes(folder)
        last_used = last_used_ns(folder) / 1e9
        check(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as exc:
        fault = str(exc)
    except OSError as exc:
        if exc.errno != errno.EIO:  # any other says something of this process, not of the adapter
            raise
        fault = f"it cannot be read: {exc.strerror}"
    return StoredEntry(folder.name, nbytes, last_used, fault)


def _check_sizes(folder: Path) -> None:
    read_manifest(folder)


def _check_content(folder: Path) -> None:
    manifest = read_manifest(folder)
    found = digest_of_folder(folder)
    for name, file in found.files.items():
        if file != manifest.files[name]:
            raise ValueError(f"{name} has sha256 {file.sha256} instead of {manifest.files[name].sha256}")
    if found.digest != folder.name:
        raise ValueError(f"its content is that of {found.digest}")
