"""DiskStore: whole adapters only, within the quota, the least recently used out first."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loramux.adapters import failpoints
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.store_contents import NUM_CANDIDATES
from loramux.adapters.store_manifest import MANIFEST_NAME, STORED_NAMES
from loramux.errors import ConfigInvalid, EngineOverloaded, ResolverFailed, StoreFull
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from store_cases import (
    BASE,
    CONFIG,
    check_integrity,
    contents,
    digest_of,
    fill,
    publish,
    ref_to,
    room_for,
    walked_nbytes,
)

MISSING = "f" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[DiskStore]:
    with DiskStore.open(root, min_free_bytes=0) as store:
        yield store


@pytest.fixture
def small(tmp_path: Path) -> Iterator[DiskStore]:
    """Room for three adapters of 1,000 bytes of weights."""
    with DiskStore.open(tmp_path / "small", max_bytes=room_for(3, 1000), min_free_bytes=0) as store:
        yield store


def some(letter: str) -> bytes:
    return letter.encode() * 1000


def use(store: DiskStore, digest: str) -> None:
    lease = store.hold(digest)
    assert lease is not None
    lease.release()


# --- publishing


def test_a_published_adapter_lies_under_its_digest_read_only(store: DiskStore, root: Path) -> None:
    adapter = publish(store, b"weights")

    assert adapter.digest == digest_of(CONFIG, b"weights")
    assert adapter.folder == root / "store" / adapter.digest[:2] / adapter.digest
    assert {stat.S_IMODE(path.stat().st_mode) for path in adapter.folder.iterdir()} == {0o444}
    assert (adapter.folder / WEIGHTS_NAME).read_bytes() == b"weights"
    assert adapter.nbytes == store.nbytes == walked_nbytes(root)
    check_integrity(store)


def test_the_manifest_says_what_the_files_are_and_nothing_of_names(store: DiskStore) -> None:
    adapter = publish(store, b"weights")

    manifest = json.loads((adapter.folder / MANIFEST_NAME).read_bytes())
    assert sorted(manifest) == ["created", "digest", "files"]
    assert manifest["digest"] == adapter.digest
    assert manifest["files"][WEIGHTS_NAME]["nbytes"] == 7


def test_the_same_content_is_stored_once(store: DiskStore) -> None:
    with store.stage(100) as one, store.stage(100) as other:
        fill(one.folder, b"same")
        fill(other.folder, b"same")
        assert one.publish() == other.publish()

    assert store.nbytes == publish(store, b"same").nbytes
    check_integrity(store)


def test_what_is_not_published_leaves_nothing(store: DiskStore, root: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.stage(100) as staging:
        fill(staging.folder, b"weights")
        assert store.reserved_nbytes >= 100
        raise ZeroDivisionError

    assert contents(root) == set()
    check_integrity(store)


def test_a_straggling_download_cannot_write_into_staging_any_more(store: DiskStore, root: Path) -> None:
    with store.stage(100) as staging:
        fill(staging.folder, b"weights")

    with pytest.raises(FileNotFoundError):
        (staging.folder / "late").write_bytes(b"late")
    check_integrity(store)


def test_only_the_two_files_are_published(store: DiskStore) -> None:
    with store.stage(100) as staging:
        fill(staging.folder, b"weights")
        (staging.folder / ".cache" / "deep").mkdir(parents=True)
        (staging.folder / MANIFEST_NAME).write_text("forged")
        adapter = staging.publish()

    assert sorted(path.name for path in adapter.folder.iterdir()) == sorted(STORED_NAMES)
    check_integrity(store)


def link_to_outside(weights: Path) -> None:
    weights.symlink_to("/etc/passwd")


def hard_link(weights: Path) -> None:
    outside = weights.parents[2] / "outside"
    outside.write_bytes(b"weights")
    weights.hardlink_to(outside)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda weights: None, "is not there"),
        (Path.mkdir, "is not a file of its own"),
        (os.mkfifo, "is not a file of its own"),
        (link_to_outside, "is not a file of its own"),
        (hard_link, "is not a file of its own"),
    ],
)
def test_what_is_no_file_of_its_own_is_refused(
    store: DiskStore, root: Path, make: Callable[[Path], None], reason: str
) -> None:
    with store.stage(100) as staging:
        (staging.folder / CONFIG_NAME).write_bytes(CONFIG)
        make(staging.folder / WEIGHTS_NAME)
        with pytest.raises(ResolverFailed, match=f"{WEIGHTS_NAME} {reason}") as caught:
            staging.publish()

    assert not caught.value.retryable
    assert contents(root) == set()
    check_integrity(store)


def test_more_than_was_reserved_is_refused(store: DiskStore, root: Path) -> None:
    with store.stage(10) as staging:
        fill(staging.folder, bytes(2000))
        with pytest.raises(ResolverFailed, match="larger than the room kept for it"):
            staging.publish()

    assert contents(root) == set()
    check_integrity(store)


# --- the disk refuses


PUBLISHING = ("adapter_hashed", "manifest_written", "file_synced", "folder_synced", "shard_created", "use_marked")


def fail_at(failpoint: str, number: int) -> Callable[[str], None]:
    def handle(name: str) -> None:
        if name == failpoint:
            raise OSError(number, os.strerror(number), "/secret/path")

    return handle


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("failpoint", PUBLISHING)
def test_a_disk_that_refuses_is_left_alone_for_a_while(
    store: DiskStore, root: Path, failpoint: str, number: int
) -> None:
    with pytest.raises(ResolverFailed) as caught, failpoints.installed(fail_at(failpoint, number)):
        publish(store, b"weights")

    assert str(caught.value) == f"the adapter store cannot use its disk: {os.strerror(number)}"
    assert (caught.value.retryable, caught.value.retry_after_seconds) == (False, 30.0)
    assert contents(root) == set()
    check_integrity(store)
    publish(store, b"weights")


@pytest.mark.parametrize("failpoint", ["ref_written", "ref_synced"])
def test_a_ref_that_cannot_be_written_leaves_the_old_one(store: DiskStore, failpoint: str) -> None:
    old = ref_to(publish(store, b"old").digest)
    store.set_ref(BASE, "sql", old)

    with pytest.raises(ResolverFailed), failpoints.installed(fail_at(failpoint, errno.ENOSPC)):
        store.set_ref(BASE, "sql", ref_to(publish(store, b"new").digest))

    assert store.find_ref(BASE, "sql") == old
    check_integrity(store)


# --- what a power failure may find


def test_nothing_is_referred_to_before_it_is_on_the_disk(
    store: DiskStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    unsynced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(name: str) -> None:
        if name == "adapter_renamed":
            (folder,) = root.glob("store/*/*")
            needed = [folder, *folder.iterdir(), root / "store"]
        elif name == "shard_synced":
            needed = list(root.glob("store/*"))
        elif name == "ref_replaced":
            needed = list(root.glob("refs/*"))
        elif name == "refs_synced":
            needed = [root / "refs"]
        else:
            return
        unsynced.extend(f"{name}: {path}" for path in needed if path.stat().st_ino not in synced)

    monkeypatch.setattr(os, "fsync", fsync)
    with failpoints.installed(check):
        digest = publish(store, b"weights").digest
        store.set_ref(BASE, "sql", ref_to(digest))

    assert unsynced == []
    assert len(synced) >= 8  # three files, four folders, a ref


# --- holding


def test_a_held_adapter_is_found_with_its_folder(store: DiskStore) -> None:
    adapter = publish(store, b"weights")

    with store.hold(adapter.digest) as lease:  # type: ignore[union-attr]
        assert lease.adapter == adapter


@pytest.mark.parametrize("digest", [MISSING, "", "../../../etc", "/etc", "F" * 64, "0" * 64 + "/.."])
def test_what_is_not_there_or_no_digest_is_not_held(store: DiskStore, digest: str) -> None:
    assert store.hold(digest) is None
    store.discard(digest)


def truncate(folder: Path) -> None:
    (folder / WEIGHTS_NAME).chmod(0o600)
    os.truncate(folder / WEIGHTS_NAME, 3)


def swap_manifest(content: bytes) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        (folder / MANIFEST_NAME).unlink()
        (folder / MANIFEST_NAME).write_bytes(content)

    return swap


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda folder: (folder / WEIGHTS_NAME).unlink(),
        lambda folder: (folder / MANIFEST_NAME).unlink(),
        lambda folder: (folder / "more").write_bytes(b"more"),
        lambda folder: (folder / "more").mkdir(),
        swap_manifest(b""),
        swap_manifest(b"[]"),
        swap_manifest(b"{" * 900),
        swap_manifest(b" " * 5000),
        swap_manifest(json.dumps({"digest": MISSING, "files": {}, "created": 1}).encode()),
        swap_manifest(
            json.dumps({"digest": MISSING, "files": {CONFIG_NAME: 1, WEIGHTS_NAME: 2}, "created": 1}).encode()
        ),
    ],
)
def test_what_is_not_whole_counts_as_absent_and_goes(
    store: DiskStore, root: Path, damage: Callable[[Path], Any]
) -> None:
    intact, torn = publish(store, b"intact"), publish(store, b"torn")
    damage(torn.folder)

    assert store.hold(torn.digest) is None

    assert contents(root) == {intact.digest}
    check_integrity(store)
    use(store, publish(store, b"torn").digest)


def test_a_torn_adapter_gives_way_to_a_whole_one_of_its_digest(store: DiskStore) -> None:
    truncate(publish(store, b"weights").folder)

    assert publish(store, b"weights").nbytes == store.nbytes
    check_integrity(store)


def test_a_process_short_of_descriptors_does_not_take_a_whole_adapter_for_torn(
    store: DiskStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = publish(store, b"weights")

    def no_more(path: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, pytest.raises(ResolverFailed):
        patch.setattr(os, "scandir", no_more)
        store.hold(adapter.digest)

    assert contents(root) == {adapter.digest}


def test_what_turned_out_corrupt_can_be_discarded_even_while_it_is_held(store: DiskStore, root: Path) -> None:
    adapter = publish(store, b"weights")
    lease = store.hold(adapter.digest)
    assert lease is not None

    store.discard(adapter.digest)

    assert contents(root) == set()
    lease.release()
    check_integrity(store)


# --- the quota


def test_the_longest_unused_adapter_leaves_first(small: DiskStore) -> None:
    a, _b, c = (publish(small, some(letter)).digest for letter in "abc")
    use(small, a)

    d = publish(small, some("d")).digest
    assert contents(small.root) == {a, c, d}
    e = publish(small, some("e")).digest
    assert contents(small.root) == {a, d, e}
    check_integrity(small)


def test_publishing_what_is_there_already_is_a_use(small: DiskStore) -> None:
    a, _b, c = (publish(small, some(letter)).digest for letter in "abc")
    with small.stage(0) as staging:
        fill(staging.folder, b"")
    publish(small, some("a"))

    assert a in contents(small.root)
    assert c in contents(small.root)


def test_what_was_used_since_it_was_last_a_candidate_stays(tmp_path: Path) -> None:
    num_adapters = NUM_CANDIDATES + 2
    with DiskStore.open(tmp_path, max_bytes=room_for(num_adapters, 4000), min_free_bytes=0) as store:
        digests = [publish(store, number.to_bytes(1, "little") * 4000).digest for number in range(num_adapters)]
        publish(store, b"more" * 1000)  # finds its victim by a walk that leaves candidates over
        use(store, digests[1])
        publish(store, b"even" * 1000)

        assert set(digests) - contents(store.root) == {digests[0], digests[2]}
        check_integrity(store)


def test_the_store_tells_what_it_holds_and_how_many_had_to_leave(small: DiskStore) -> None:
    for letter in "abcde":
        publish(small, some(letter))

    state = small.state()
    assert (state.num_adapters, state.nbytes, state.num_evictions) == (3, small.nbytes, 2)


def test_a_held_adapter_never_leaves_and_a_released_one_may(small: DiskStore) -> None:
    a, b, c = (publish(small, some(letter)).digest for letter in "abc")
    leases = [small.hold(a), small.hold(a), small.hold(b)]
    d = publish(small, some("d")).digest
    assert contents(small.root) == {a, b, d}

    for lease in (leases[0], leases[0], leases[2]):
        assert lease is not None
        lease.release()
    e = publish(small, some("e")).digest

    assert contents(small.root) == {a, d, e}
    assert c not in contents(small.root)


def test_when_everything_is_in_use_nothing_is_evicted_for_nothing(small: DiskStore) -> None:
    digests = [publish(small, some(letter)).digest for letter in "abc"]
    leases = [small.hold(digest) for digest in digests[:2]]

    with (
        pytest.raises(StoreFull, match="the adapter store has no room for 2032 more bytes"),
        small.stage(1000 + len(CONFIG)),
        small.stage(1000 + len(CONFIG)),
    ):
        pytest.fail("there is room for one")

    with pytest.raises(StoreFull), small.stage(2500):
        pytest.fail("there is room for less")
    assert issubclass(StoreFull, EngineOverloaded)
    assert all(lease is not None for lease in leases)
    assert set(digests[:2]) <= contents(small.root)
    check_integrity(small)


def test_what_can_never_fit_evicts_nothing(small: DiskStore) -> None:
    digest = publish(small, some("a")).digest

    with pytest.raises(StoreFull), small.stage(room_for(3, 1000)):
        pytest.fail("it is larger than the store")

    assert contents(small.root) == {digest}


def test_what_is_published_cannot_leave_before_its_block_ends(small: DiskStore) -> None:
    with small.stage(1000 + len(CONFIG)) as staging:
        fill(staging.folder, some("a"))
        adapter = staging.publish()
        _b, c, d = (publish(small, some(letter)).digest for letter in "bcd")
        assert contents(small.root) == {adapter.digest, c, d}

    later = {publish(small, some(letter)).digest for letter in "efg"}
    assert contents(small.root) == later


def test_part_of_the_disk_stays_free(store: DiskStore, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    block = 4096
    old, new = publish(store, b"o" * 3 * block), publish(store, b"n" * 3 * block)
    free_blocks = 2

    def statvfs(path: object) -> os.statvfs_result:
        freed = sum(digest not in contents(root) for digest in (old.digest, new.digest)) * 3
        return os.statvfs_result((block, block, 1000, 0, free_blocks + freed, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    with store.stage(block):
        assert contents(root) == {old.digest, new.digest}
        with store.stage(block):
            assert contents(root) == {new.digest}
            with pytest.raises(StoreFull), store.stage(8 * block):
                pytest.fail("the disk is too small")
            assert contents(root) == {new.digest}


def test_what_has_come_already_is_not_reserved_on_the_disk_twice(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs_result((1, 1, 1000, 0, 5000, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    with store.stage(3000) as staging:
        with pytest.raises(StoreFull), store.stage(1000):
            pytest.fail("what is still to come needs the room")
        fill(staging.folder, bytes(3000))
        with store.stage(1000):
            pass


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_bytes": -1}, {"min_free_bytes": -1}])
def test_limits_that_make_no_sense_are_named(root: Path, limits: dict[str, int]) -> None:
    with pytest.raises(ConfigInvalid, match=f"must be at least ., got {next(iter(limits.values()))}"):
        DiskStore.open(root, **limits)


# --- opening


def test_one_process_owns_a_root(store: DiskStore, root: Path) -> None:
    with pytest.raises(ConfigInvalid, match=f"'{root}' is in use"):
        DiskStore.open(root)

    store.close()
    store.close()
    DiskStore.open(root).close()


def test_a_root_that_cannot_be_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigInvalid, match="cannot be used: File exists"):
        DiskStore.open(tmp_path / "file")


def test_opening_removes_what_a_dead_run_left_and_keeps_the_rest(store: DiskStore, root: Path) -> None:
    digest = publish(store, b"weights").digest
    store.set_ref(BASE, "sql", ref_to(digest))
    store.close()
    (root / "tmp" / "dead" / "deeper").mkdir(parents=True)
    (root / "tmp" / "dead" / "deeper" / WEIGHTS_NAME).write_bytes(b"torn")
    (root / "tmp" / "draft").write_bytes(b"{")
    (root / "tmp" / "link").symlink_to(root / "store")

    with DiskStore.open(root, min_free_bytes=0) as again:
        check_integrity(again)
        assert again.find_ref(BASE, "sql") == ref_to(digest)
        use(again, digest)


def test_opening_reads_no_adapter(store: DiskStore, root: Path) -> None:
    for number in range(20):
        publish(store, bytes([number]))
    store.close()
    opened: list[str] = []
    is_listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and is_listening:
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)
    with DiskStore.open(root, min_free_bytes=0) as again:
        is_listening = False
        assert again.nbytes == walked_nbytes(root)

    assert [path for path in opened if path.startswith(str(root))] == [str(root / "lock"), str(root)]


def test_what_is_kept_in_memory_does_not_grow_with_the_number_of_adapters(
    store: DiskStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for number in range(200):
        publish(store, number.to_bytes(2, "little"))
    store.close()
    DiskStore.open(root).close()  # what is made once is made now

    tracemalloc.start()
    with DiskStore.open(root) as again:
        kept, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert again.nbytes > 0

    assert kept < 200 * 50  # less than a digest for each


# --- care


def test_entries_see_a_wrong_size_and_verify_a_wrong_bit(store: DiskStore) -> None:
    good, flipped, torn = (publish(store, weights) for weights in (b"good", b"flipped", b"torn"))
    flip(flipped.folder / WEIGHTS_NAME)
    truncate(torn.folder)

    by_size = {entry.digest: entry.fault for entry in store.entries()}
    by_hash = {entry.digest: entry.fault for entry in store.verify()}

    assert by_size == {
        good.digest: None,
        flipped.digest: None,
        torn.digest: "adapter_model.safetensors has 3 bytes instead of 4",
    }
    assert by_hash[good.digest] is None
    assert f"{WEIGHTS_NAME} has sha256" in str(by_hash[flipped.digest])
    assert by_hash[torn.digest] is not None


def test_an_adapter_renamed_by_hand_is_found_out(store: DiskStore, root: Path) -> None:
    adapter = publish(store, b"weights")
    other = root / "store" / MISSING[:2] / MISSING
    other.parent.mkdir()
    adapter.folder.rename(other)

    assert [entry.fault for entry in store.verify()] == [f"{MANIFEST_NAME} is of {adapter.digest}"]


def test_gc_removes_what_is_corrupt_dangling_stray_or_too_much(small: DiskStore, root: Path) -> None:
    root = small.root
    a, b, c = (publish(small, some(letter)) for letter in "abc")
    for name, adapter in {"a": a, "b": b, "c": c}.items():
        small.set_ref(BASE, name, ref_to(adapter.digest))
    (root / "refs" / f"{MISSING}.json").write_text("{}")
    (root / "refs" / "notes.txt").write_text("stray")
    (root / "store" / "notes.txt").write_text("stray")
    (a.folder.parent / "not-a-digest").mkdir()
    flip(b.folder / WEIGHTS_NAME)
    small.close()
    (root / "tmp" / "leftover").write_text("torn")

    with DiskStore.open(root, max_bytes=room_for(1, 1000), min_free_bytes=0) as again:
        collected = again.gc()

        assert contents(root) == {c.digest}
        assert (collected.num_corrupt, collected.num_evicted) == (1, 1)
        assert (collected.num_refs, collected.num_leftovers) == (3, 4)
        assert collected.freed_nbytes == a.nbytes + b.nbytes
        assert again.gc().num_leftovers == 0
        check_integrity(again)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


# --- many at once


def test_threads_that_do_everything_at_once_leave_a_sound_store_within_its_quota(tmp_path: Path) -> None:
    over_quota: list[int] = []
    with (
        DiskStore.open(tmp_path, max_bytes=room_for(6, 1000), min_free_bytes=0) as store,
        ThreadPoolExecutor(4) as threads,
    ):

        def work(seed: int) -> None:
            chooser = random.Random(seed)
            for _ in range(40):
                letter = chooser.choice("abcdefghij")
                with suppress(StoreFull):
                    adapter = publish(store, some(letter))
                    store.set_ref(BASE, letter, ref_to(adapter.digest))
                ref = store.find_ref(BASE, chooser.choice("abcdefghij"))
                lease = None if ref is None else store.hold(ref.digest)
                if lease is not None:
                    assert len((lease.adapter.folder / WEIGHTS_NAME).read_bytes()) == 1000
                    lease.release()
                if chooser.random() < 0.1:
                    with suppress(StoreFull):
                        publish(store, some("z"))
                    store.discard(digest_of(CONFIG, some("z")))  # which nobody else holds
                if store.nbytes > room_for(6, 1000):
                    over_quota.append(store.nbytes)

        for result in [threads.submit(work, seed) for seed in range(4)]:
            result.result()
        assert over_quota == []
        check_integrity(store)


def test_giving_up_while_a_thread_publishes_leaves_nothing_held(store: DiskStore, root: Path) -> None:
    """A cancelled caller leaves its block, but cannot stop the thread."""
    is_busy, may_go_on = threading.Event(), threading.Event()

    def block(name: str) -> None:
        if name == "adapter_renamed":
            is_busy.set()
            assert may_go_on.wait(10)

    with failpoints.installed(block), ThreadPoolExecutor(2) as threads:
        context = store.stage(100)
        staging = context.__enter__()
        fill(staging.folder, b"weights")
        publishing = threads.submit(staging.publish)
        assert is_busy.wait(10)
        leaving = threads.submit(context.__exit__, None, None, None)
        wait([leaving], timeout=0.05)
        may_go_on.set()
        leaving.result(10)

    assert contents(root) == {publishing.result().digest}
    assert publishing.result().digest not in store._holds
    check_integrity(store)


def test_publishing_after_giving_up_publishes_nothing(store: DiskStore, root: Path) -> None:
    with store.stage(100) as staging:
        fill(staging.folder, b"weights")

    with pytest.raises(ResolverFailed):
        staging.publish()
    assert contents(root) == set()
    check_integrity(store)


def test_letting_go_does_not_wait_for_the_disk(store: DiskStore) -> None:
    """A lease is released on the event loop."""
    one, other = publish(store, b"one"), publish(store, b"other")
    lease = store.hold(one.digest)
    assert lease is not None
    is_busy, may_go_on = threading.Event(), threading.Event()

    def block(name: str) -> None:
        if name == "adapter_taken_out":
            is_busy.set()
            assert may_go_on.wait(10)

    with failpoints.installed(block):
        thread = threading.Thread(target=store.discard, args=(other.digest,))
        thread.start()
        assert is_busy.wait(10)
        lease.release()
        may_go_on.set()
        thread.join()
    check_integrity(store)
