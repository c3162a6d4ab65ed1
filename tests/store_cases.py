"""Adapters for the disk store, and what must be true of a store at any time; imports no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from loramux.adapters.disk_store import DiskStore, StoredAdapter, StoredRef
from loramux.adapters.store_check import verify
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_manifest import MAX_MANIFEST_NBYTES, STORED_NAMES
from loramux.adapters.store_refs import named_refs
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME

BASE = "tiny-llama"
CONFIG = b'{"r": 8}'
REF = StoredRef(
    digest="0" * 64,
    resolver="bucket",
    fingerprint="f",
    source_root="s3://bucket/prefix",
    revision="v1",
    fetched_at=1_700_000_000.5,
    defaults={"chat_template.jinja": "{{ messages }}"},
)


def digest_of(config: bytes, weights: bytes) -> str:
    """The digest by its definition, not by our code."""
    pieces = (len(config).to_bytes(8, "little"), config, len(weights).to_bytes(8, "little"), weights)
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def fill(folder: Path, weights: bytes, config: bytes = CONFIG) -> None:
    (folder / CONFIG_NAME).write_bytes(config)
    (folder / WEIGHTS_NAME).write_bytes(weights)


def publish(store: DiskStore, weights: bytes, config: bytes = CONFIG) -> StoredAdapter:
    with store.stage(len(config) + len(weights)) as staging:
        fill(staging.folder, weights, config)
        return staging.publish()


def room_for(num_adapters: int, weights_nbytes: int) -> int:
    """A quota in which so many adapters fit, and no more; a manifest takes 420 bytes, or a few less."""
    return num_adapters * (len(CONFIG) + weights_nbytes + 420) + MAX_MANIFEST_NBYTES - 420


def ref_to(digest: str) -> StoredRef:
    return replace(REF, digest=digest)


def contents(root: Path) -> set[str]:
    """The digests in the store."""
    return {path.name for path in root.glob("store/*/*")}


def walked_nbytes(root: Path) -> int:
    """What all files in the store take, by a walk of our own."""
    return sum(path.stat().st_size for path in root.glob("store/**/*") if path.is_file())


def check_integrity(store: DiskStore) -> None:
    """At quiescence: only whole adapters, nothing in staging, refs that lead somewhere, the right sum."""
    layout = StoreLayout(store.root)
    for folder in layout.root.glob("store/*/*"):
        assert sorted(path.name for path in folder.iterdir()) == sorted(STORED_NAMES), folder
        assert digest_of((folder / CONFIG_NAME).read_bytes(), (folder / WEIGHTS_NAME).read_bytes()) == folder.name
        assert folder.parent.name == folder.name[:2]
    assert [entry for entry in verify(layout) if entry.fault is not None] == []
    assert list(layout.tmp.iterdir()) == []
    assert store.nbytes == walked_nbytes(store.root)
    assert store.state().num_adapters == len(list(layout.folders()))
    assert store.reserved_nbytes == 0
    for path in layout.refs.iterdir():
        assert re.fullmatch(r"[0-9a-f]{64}\.json", path.name)
    named_by_file = list(named_refs(layout))
    assert len(named_by_file) == len(list(layout.refs.iterdir()))
    for named in named_by_file:
        found = store.find_ref(named.base_model_name, named.lora_name)
        assert found is None or found.digest in contents(store.root)
