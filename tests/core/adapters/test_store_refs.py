"""StoreRefs: what a name means survives a restart, and what cannot be trusted counts as unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_refs import NamedRef, named_refs, ref_file_name
from store_cases import BASE, check_integrity, publish, ref_to


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with DiskStore.open(tmp_path, min_free_bytes=0) as store:
        yield store


def test_a_name_is_known_until_it_is_removed(store: DiskStore) -> None:
    ref = ref_to(publish(store, b"weights").digest)

    store.set_ref(BASE, "sql", ref)
    assert store.find_ref(BASE, "sql") == ref
    assert store.find_ref("other base", "sql") is None
    assert store.find_ref(BASE, "json") is None

    store.remove_ref(BASE, "sql")
    store.remove_ref(BASE, "sql")
    assert store.find_ref(BASE, "sql") is None
    check_integrity(store)


def test_a_name_may_come_to_mean_another_adapter(store: DiskStore) -> None:
    for weights in (b"old", b"new"):
        ref = ref_to(publish(store, weights).digest)
        store.set_ref(BASE, "sql", ref)

    assert store.find_ref(BASE, "sql") == ref
    assert len(list((store.root / "refs").iterdir())) == 1


def test_no_two_pairs_of_names_share_a_file() -> None:
    pairs = [
        ("a", "bc"),
        ("ab", "c"),
        ("", "abc"),
        ("abc", ""),
        ("a", "BC"),
        ("é", ""),
        ("e\u0301", ""),
        ("\udc80", ""),
    ]

    assert len({ref_file_name(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a\0b", "CON", "a" * 5000, "\udc80", "ÀÉ/日本"])
def test_no_name_becomes_part_of_a_path(store: DiskStore, name: str) -> None:
    ref = ref_to(publish(store, b"weights").digest)

    store.set_ref(name, name, ref)

    assert store.find_ref(name, name) == ref
    assert [named.lora_name for named in named_refs(StoreLayout(store.root))] == [name]
    check_integrity(store)


def test_a_ref_to_what_was_evicted_goes_when_it_is_found(store: DiskStore) -> None:
    digest = publish(store, b"weights").digest
    store.set_ref(BASE, "sql", ref_to(digest))
    store.discard(digest)

    assert store.find_ref(BASE, "sql") is None
    assert list((store.root / "refs").iterdir()) == []


def change(**fields: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


def drop(field: str) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({name: v for name, v in json.loads(content).items() if name != field}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-5],
        lambda content: b"[" * 10_000,
        lambda content: b"\xff" + content,
        change(source_root="x" * 2_000_000),
        change(defaults=["chat_template.jinja"]),
        change(defaults={"../evil": "x"}),
        change(defaults={"chat_template.jinja": 5}),
        drop("digest"),
        drop("fetched_at"),
        change(digest="../../../../etc"),
        change(digest=7),
        change(revision=None),
        change(fetched_at="yesterday"),
        change(fetched_at=float("nan")),
        change(lora_name="json"),
        change(base_model_name=""),
    ],
)
def test_a_corrupt_ref_counts_as_absent(store: DiskStore, damage: Callable[[bytes], bytes]) -> None:
    ref = ref_to(publish(store, b"weights").digest)
    store.set_ref(BASE, "sql", ref)
    (path,) = (store.root / "refs").iterdir()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))

    assert list(named_refs(StoreLayout(store.root))) == []
    assert store.find_ref(BASE, "sql") is None
    assert not path.exists()

    store.set_ref(BASE, "sql", ref)
    assert store.find_ref(BASE, "sql") == ref


def test_a_ref_reads_back_as_it_was_written() -> None:
    named = NamedRef(BASE, "sql@main", ref_to("a" * 64))

    assert NamedRef.parse(named.to_json()) == named
