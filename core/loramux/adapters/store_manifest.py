"""The manifest of a stored adapter: the third file of its folder, which says what the other two must be.

An adapter is whole when its folder holds these three regular files and nothing else, has the manifest's digest as its
name, and each file has the manifest's size. That is cheap to ask; whether every byte is right, only a new hash can say.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from loramux.adapters.digest import FileDigest, digest_of_folder, is_digest
from loramux.adapters.failpoints import reached
from loramux.adapters.store_files import remove, seal_file, sync_folder, write_new
from loramux.adapters.strict_json import JsonValue, parse_json_object
from loramux.lora.remote import ADAPTER_FILE_NAMES

MANIFEST_NAME = "manifest.json"
STORED_NAMES = (*ADAPTER_FILE_NAMES, MANIFEST_NAME)
MAX_MANIFEST_NBYTES = 1024
_MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Manifest:
    """`created` is in Unix seconds; `files` has the two adapter files by name."""

    digest: str
    files: Mapping[str, FileDigest]
    created: float

    def to_json(self) -> bytes:
        """Return the file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Read the file's content back; raises ValueError."""
        match parse_json_object(content, max_depth=_MAX_DEPTH):
            case {"digest": str(digest), "files": dict(files), "created": int() | float() as created, **rest}:
                if rest or not is_digest(digest) or set(files) != set(ADAPTER_FILE_NAMES):
                    raise ValueError(f"{MANIFEST_NAME} is not one of an adapter")
                return cls(digest, {name: _parse_file(files[name]) for name in ADAPTER_FILE_NAMES}, created)
        raise ValueError(f"{MANIFEST_NAME} lacks something")


def _parse_file(value: JsonValue) -> FileDigest:
    match value:
        case {"nbytes": int(nbytes), "sha256": str(sha256)}:
            return FileDigest(nbytes, sha256)
    raise ValueError(f"{MANIFEST_NAME} does not say what its files are")


def seal(folder: Path) -> Manifest:
    """Describe the two files of a folder in a manifest and bring all three to the disk, read-only.

    Raises OSError, and ValueError when one of the two is no file that belongs to this folder alone.
    """
    for path in folder.iterdir():
        if path.name not in ADAPTER_FILE_NAMES:
            remove(path)  # a download's own notes
    for name in ADAPTER_FILE_NAMES:
        _refuse_shared(folder / name)
    hashed = digest_of_folder(folder)
    reached("adapter_hashed")
    manifest = Manifest(hashed.digest, hashed.files, time.time())
    write_new(folder / MANIFEST_NAME, manifest.to_json())
    reached("manifest_written")
    for name in STORED_NAMES:
        seal_file(folder / name)
        reached("file_synced")
    sync_folder(folder)
    reached("folder_synced")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an adapter that is whole.

    Raises FileNotFoundError when there is no such folder, ValueError with the reason when the adapter is not whole.
    """
    nbytes = _sizes(folder)
    if set(nbytes) != set(STORED_NAMES):
        raise ValueError(f"its folder holds {', '.join(sorted(nbytes)) or 'nothing'}")
    if nbytes[MANIFEST_NAME] > MAX_MANIFEST_NBYTES:
        raise ValueError(f"{MANIFEST_NAME} has {nbytes[MANIFEST_NAME]} bytes")
    manifest = Manifest.parse((folder / MANIFEST_NAME).read_bytes())
    if manifest.digest != folder.name:
        raise ValueError(f"{MANIFEST_NAME} is of {manifest.digest}")
    for name, file in manifest.files.items():
        if nbytes[name] != file.nbytes:
            raise ValueError(f"{name} has {nbytes[name]} bytes instead of {file.nbytes}")
    return manifest


def folder_nbytes(folder: str | Path) -> int:
    """Return what the files of a folder take; raises FileNotFoundError when it is not there."""
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise ValueError(f"{entry.name} is not a regular file")
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _refuse_shared(path: Path) -> None:
    """A link, symbolic or hard, would let the content change through its other name."""
    try:
        status = path.lstat()
    except FileNotFoundError as exc:
        raise ValueError(f"{path.name} is not there") from exc
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ValueError(f"{path.name} is not a file of its own")
