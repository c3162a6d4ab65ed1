"""AdapterFiles: the two files of an adapter folder, each opened once and judged on its own descriptor.

Folders given by the operator follow symlinks (a Hub snapshot is made of them). What a resolver found below a root is
opened from that root, one segment at a time, and no symlink is followed: nothing that happens to the folder after it
was found leads out of the root. A folder may be rewritten while it is read, so `has_changed` tells afterwards whether
what was read is still what the folder holds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from loramux.adapters.refusal import Refusal
from loramux.lora.remote import ADAPTER_FILE_NAMES, CONFIG_NAME, WEIGHTS_NAME

_PICKLE_NAME = "adapter_model.bin"
_SHARDS_NAME = "adapter_model.safetensors.index.json"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MIN_SPARSE_NBYTES = 1 << 20  # file systems store small files in ways that need no block

Fingerprint = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One open regular file; reading goes forward only, so that no byte is read twice."""

    name: str
    stream: FileIO
    fingerprint: Fingerprint
    nbytes: int
    num_blocks: int

    def read(self, nbytes: int) -> memoryview:
        """Return the next `nbytes` bytes, fewer only at the end of the file."""
        # not a bytearray: that is filled with zeros first, and every other thread of Python waits meanwhile
        buffer = np.empty(nbytes, dtype=np.uint8).data
        num_read = 0
        while num_read < nbytes and (count := self.stream.readinto(buffer[num_read:])):
            num_read += count
        return buffer[:num_read]

    def fetch_ahead(self) -> None:
        """Let the system read the file while something else is done, where it can be asked to."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # not every file system takes advice
                os.posix_fadvise(self.stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def is_sparse(self) -> bool:
        """Tell, before the first read, whether the file claims bytes that nothing on the disk stands for."""
        if self.nbytes < _MIN_SPARSE_NBYTES or self.num_blocks == 0:  # 0: the file system does not say
            return False
        if self.num_blocks * 512 >= 0.9 * self.nbytes:
            return False
        # Compression saves blocks too; only a hole before the end makes a file sparse.
        first_hole = self.stream.seek(0, os.SEEK_HOLE)
        self.stream.seek(0)
        return first_hole < self.nbytes


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The open config and weights of one adapter folder."""

    config: AdapterFile
    weights: AdapterFile
    folder_descriptor: int

    def has_changed(self) -> bool:
        """Tell whether either file was written or replaced since it was opened."""
        return any(self._has_changed(file) for file in (self.config, self.weights))

    def _has_changed(self, file: AdapterFile) -> bool:
        try:
            now = os.stat(file.name, dir_fd=self.folder_descriptor)
        except OSError:
            return True
        return _fingerprint(now) != file.fingerprint


@contextmanager
def open_adapter_files(folder: Path, allowed_root: Path | None = None) -> Iterator[AdapterFiles]:
    """Open both files of the folder, and close them at the end; raises Refusal when that cannot be done safely.

    With `allowed_root` the folder must lie below it, and no symlink on the way to the files is followed.
    """
    with ExitStack() as stack:
        descriptor = _enter_folder(folder, allowed_root, stack)
        _refuse_other_formats(descriptor)
        no_follow = 0 if allowed_root is None else os.O_NOFOLLOW
        config = _open_file(CONFIG_NAME, descriptor, no_follow, stack)
        weights = _open_file(WEIGHTS_NAME, descriptor, no_follow, stack)
        yield AdapterFiles(config, weights, descriptor)


def read_texts(folder: Path, names: Sequence[str], *, allowed_root: Path | None, most_nbytes: int) -> dict[str, str]:
    """Read those of the named text files that the folder has; raises Refusal for one that cannot be used.

    Links are followed as for the adapter's own files.
    """
    texts = {}
    no_follow = 0 if allowed_root is None else os.O_NOFOLLOW
    with ExitStack() as stack:
        descriptor = _enter_folder(folder, allowed_root, stack)
        for name in names:
            if not _exists(name, descriptor):
                continue
            raw = bytes(_open_file(name, descriptor, no_follow, stack).read(most_nbytes + 1))
            if len(raw) > most_nbytes:
                raise Refusal(f"{name} has more than {most_nbytes} bytes.")
            try:
                texts[name] = raw.decode()
            except UnicodeDecodeError as exc:
                raise Refusal(f"{name} is not UTF-8 text.") from exc
    return texts


def folder_revision(folder: Path) -> str:
    """Name the present version of a local folder by its files' fingerprints; "" when there is nothing to name."""
    try:
        stats = [(folder.expanduser() / name).stat() for name in ADAPTER_FILE_NAMES]
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(repr([_fingerprint(status) for status in stats]).encode()).hexdigest()


def _enter_folder(folder: Path, allowed_root: Path | None, stack: ExitStack) -> int:
    try:
        descriptor = _open_folder(folder, allowed_root)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path, or a folder that is not below the root
        raise Refusal(f"its folder cannot be opened: {_reason(exc)}.", may_heal=True) from exc
    stack.callback(os.close, descriptor)
    return descriptor


def _open_folder(folder: Path, allowed_root: Path | None) -> int:
    if allowed_root is None:
        return os.open(folder, _FOLDER_FLAGS)
    segments = folder.relative_to(allowed_root).parts
    if ".." in segments:
        raise ValueError(f"{folder} leads out of {allowed_root}")
    descriptor = os.open(allowed_root, _FOLDER_FLAGS)
    for segment in segments:
        parent = descriptor
        try:
            descriptor = os.open(segment, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
    return descriptor


def _refuse_other_formats(descriptor: int) -> None:
    if _exists(_SHARDS_NAME, descriptor):
        raise Refusal(f"is split into shards ({_SHARDS_NAME}); not supported.", code="adapter_format_unsupported")
    if not _exists(WEIGHTS_NAME, descriptor) and _exists(_PICKLE_NAME, descriptor):
        raise Refusal(
            f"has only {_PICKLE_NAME}, a pickle file that is never opened; save it as {WEIGHTS_NAME}.",
            code="adapter_format_unsupported",
        )


def _exists(name: str, descriptor: int) -> bool:
    try:
        os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except OSError:
        return False
    return True


def _open_file(name: str, folder_descriptor: int, no_follow: int, stack: ExitStack) -> AdapterFile:
    # O_NONBLOCK: opening a FIFO would wait for a writer for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | no_follow
    try:
        descriptor = os.open(name, flags, dir_fd=folder_descriptor)
    except FileNotFoundError as exc:
        raise Refusal(f"its folder has no {name}.", may_heal=True) from exc
    except OSError as exc:
        raise Refusal(f"{name} cannot be opened: {_reason(exc)}.", may_heal=True) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refusal(f"{name} is not a regular file.")
        stream = stack.enter_context(FileIO(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise
    return AdapterFile(name, stream, _fingerprint(status), status.st_size, status.st_blocks)


def _fingerprint(status: os.stat_result) -> Fingerprint:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _reason(exc: OSError | ValueError) -> str:
    """Return what the system said without the path, which is not for clients."""
    return (exc.strerror if isinstance(exc, OSError) else None) or "it is not a usable path"
