"""StoreRefs: which adapter of the disk store a name means, and where it came from.

A ref is one small file, replaced whole or not at all. One that cannot be understood counts as absent: then its name is
simply looked for again. A ref may outlive its adapter; whoever finds that takes it away.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loramux.adapters.digest import is_digest
from loramux.adapters.failpoints import reached
from loramux.adapters.store_files import seal_file, sync_folder, write_new
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.strict_json import JsonValue, parse_json_object
from loramux.lora.remote import DEFAULTS_FILE_NAMES

_MAX_REF_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredRef:
    """One version of an adapter and its source. `fetched_at`, in Unix seconds, is when the source last vouched for it.

    `resolver` and `fingerprint` say which resolver found it and how that was configured; `source_root` and `revision`
    are what the source calls the place and the version. `defaults` has the texts of what this version brings besides
    its weights, by file name: they belong to the name, so that two versions of equal weights may bring different ones.
    """

    digest: str
    resolver: str
    fingerprint: str
    source_root: str
    revision: str
    fetched_at: float
    defaults: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class NamedRef:
    """A ref and the name it is found by."""

    base_model_name: str
    lora_name: str
    ref: StoredRef

    def to_json(self) -> bytes:
        """Return the file's content."""
        names = {"base_model_name": self.base_model_name, "lora_name": self.lora_name}
        return json.dumps(names | asdict(self.ref), indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> NamedRef:
        """Read the file's content back; raises ValueError."""
        match parse_json_object(content, max_depth=2):
            case {
                "base_model_name": str(base_model_name),
                "lora_name": str(lora_name),
                "digest": str(digest),
                "resolver": str(resolver),
                "fingerprint": str(fingerprint),
                "source_root": str(source_root),
                "revision": str(revision),
                "fetched_at": int() | float() as fetched_at,
                **rest,
            } if is_digest(digest):
                defaults = _parse_defaults(rest.get("defaults", {}))
                ref = StoredRef(digest, resolver, fingerprint, source_root, revision, fetched_at, defaults)
                return cls(base_model_name, lora_name, ref)
        raise ValueError("not a ref")


def _parse_defaults(value: JsonValue) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("not a ref")
    defaults = {name: text for name, text in value.items() if name in DEFAULTS_FILE_NAMES and isinstance(text, str)}
    if len(defaults) != len(value):
        raise ValueError("not a ref")
    return defaults


class StoreRefs:
    """The refs below one root; thread-safe. Raises OSError when the disk refuses."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._lock = threading.Lock()

    def find(self, base_model_name: str, lora_name: str) -> StoredRef | None:
        """Return the ref of a name; one whose adapter is gone, or that is corrupt, is taken away."""
        with self._lock:
            return self._checked(self._path(base_model_name, lora_name))

    def set(self, base_model_name: str, lora_name: str, ref: StoredRef) -> None:
        """Make the name mean this adapter."""
        named = NamedRef(base_model_name, lora_name, ref)
        draft = self._layout.new_tmp()
        try:
            write_new(draft, named.to_json())
            reached("ref_written")
            seal_file(draft)
            reached("ref_synced")
            with self._lock:
                draft.replace(self._path(base_model_name, lora_name))
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        reached("ref_replaced")
        sync_folder(self._layout.refs)
        reached("refs_synced")

    def remove(self, base_model_name: str, lora_name: str) -> None:
        """Forget the name, if it is known."""
        with self._lock:
            self._remove(self._path(base_model_name, lora_name))

    def sweep(self) -> int:
        """Take away the refs that mean nothing any more; return how many."""
        num_removed = 0
        for path in self._layout.ref_paths():
            with self._lock:
                num_removed += self._checked(path) is None
        return num_removed

    def _path(self, base_model_name: str, lora_name: str) -> Path:
        return self._layout.refs / ref_file_name(base_model_name, lora_name)

    def _checked(self, path: Path) -> StoredRef | None:
        try:
            ref = read_ref(path).ref
        except FileNotFoundError:
            return None
        except ValueError:
            self._remove(path)
            return None
        if self._layout.folder(ref.digest).is_dir():
            return ref
        self._remove(path)
        return None

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            return
        reached("ref_removed")
        sync_folder(self._layout.refs)


def named_refs(layout: StoreLayout) -> Iterator[NamedRef]:
    """Walk over the refs that can be understood; reads only."""
    for path in layout.ref_paths():
        with suppress(FileNotFoundError, ValueError):
            yield read_ref(path)


def read_ref(path: Path) -> NamedRef:
    """Read one ref; raises FileNotFoundError, and ValueError when it is not what its file name says."""
    with path.open("rb") as stream:
        named = NamedRef.parse(stream.read(_MAX_REF_NBYTES))
    if ref_file_name(named.base_model_name, named.lora_name) != path.name:
        raise ValueError("a ref under the name of another one")
    return named


def ref_file_name(base_model_name: str, lora_name: str) -> str:
    """Return what the file is called: a hash, in which each part stands behind its length, so that no two collide."""
    digest = hashlib.sha256()
    for part in (base_model_name, lora_name):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return f"{digest.hexdigest()}.json"
