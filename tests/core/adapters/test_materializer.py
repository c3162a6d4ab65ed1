"""From a remote source into the store: only what is whole and right, fetched once, used as long as it holds."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loramux.adapters import materializer as materializer_module
from loramux.adapters import retrying
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.materializer import Materializer
from loramux.adapters.peft_config import MAX_CONFIG_NBYTES
from loramux.adapters.resolution import Found
from loramux.adapters.resolver_calls import ResolverCalls
from loramux.adapters.store_manifest import STORED_NAMES
from loramux.errors import AdapterInvalid, ResolverFailed, SourceChanged, StoreFull
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME, RemoteAdapter
from loramux.lora.resolver_policy import ResolverPolicy
from remote_cases import Shelf, Upload


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(materializer_module, "WATCH_SECONDS", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with DiskStore.open(tmp_path / "store", max_bytes=10_000_000, min_free_bytes=0) as store:
        yield store


@pytest.fixture
def shelf() -> Shelf:
    return Shelf({"sql": Upload(b"weights of sql")})


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def materializer(store: DiskStore, clock: Clock) -> Materializer:
    return Materializer(store, max_adapter_nbytes=1000, now=clock)


@asynccontextmanager
async def calls_of(shelf: Shelf, fingerprint: str = "one") -> AsyncIterator[ResolverCalls]:
    policy = ResolverPolicy(revalidate_seconds=300, unknown_seconds=0, timeout_seconds=30)
    calls = ResolverCalls(ActiveResolver("shelf", shelf, policy, fingerprint))
    try:
        yield calls
    finally:
        await calls.close()


@pytest.fixture
async def calls(shelf: Shelf) -> AsyncIterator[ResolverCalls]:
    async with calls_of(shelf) as calls:
        yield calls


async def find(materializer: Materializer, calls: ResolverCalls, name: str = "sql", **options: bool) -> Found:
    found = await materializer.find(calls, "base", name, **options)
    assert found is not None
    if found.confirm is not None:
        found.confirm()  # it is valid
    found.release()
    return found


def assert_nothing_is_staged(store: DiskStore) -> None:
    assert (list((store.root / "tmp").iterdir()), store._stagings) == ([], set())


async def test_what_is_found_lies_whole_in_the_store_under_its_digest(
    materializer: Materializer, calls: ResolverCalls, store: DiskStore
) -> None:
    found = await find(materializer, calls)

    folder = Path(found.lora_request.lora_path)
    assert folder.is_relative_to(store.root)
    assert folder.name == found.lora_request.digest
    assert "sql" not in str(folder.relative_to(store.root))
    assert (folder / WEIGHTS_NAME).read_bytes() == b"weights of sql"
    assert (folder / CONFIG_NAME).read_bytes() == b"{}"
    assert (found.root, found.revision, found.resolver, found.is_new) == ("shelf://sql", "v1", "shelf", True)
    assert found.lora_request.allowed_root == str(store.root)
    assert_nothing_is_staged(store)


async def test_what_is_fetched_has_its_time_taken_and_what_is_stored_has_not(
    store: DiskStore, calls: ResolverCalls, clock: Clock
) -> None:
    taken: list[float] = []
    materializer = Materializer(store, now=clock, on_fetched=taken.append)

    for _ in range(2):
        await find(materializer, calls)
    clock.now += 1_000_000
    await find(materializer, calls)  # its source still names the same version

    assert len(taken) == 1
    assert taken[0] > 0


async def test_while_it_is_fresh_its_source_is_not_asked(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, clock: Clock
) -> None:
    first = await find(materializer, calls)
    clock.now += 299
    again = await find(materializer, calls)
    assert (shelf.num_located, len(shelf.downloads), again.is_new) == (1, 2, False)
    assert again.lora_request == first.lora_request


async def test_afterwards_the_source_is_asked_and_nothing_is_fetched_unless_it_changed(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, clock: Clock
) -> None:
    await find(materializer, calls)
    clock.now += 300
    await find(materializer, calls)
    clock.now += 299
    await find(materializer, calls)  # fresh again
    assert (shelf.num_located, len(shelf.downloads)) == (2, 2)
    shelf.uploads["sql"] = Upload(b"new weights", revision="v2")
    clock.now += 300
    new = await find(materializer, calls)
    assert (new.revision, new.is_new, len(shelf.downloads)) == ("v2", True, 4)


async def test_a_refresh_asks_the_source_although_all_is_fresh(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    await find(materializer, calls)
    await find(materializer, calls, is_refresh=True)
    assert (shelf.num_located, len(shelf.downloads)) == (2, 2)


async def test_what_was_stored_under_another_configuration_does_not_count(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    await find(materializer, calls)
    async with calls_of(shelf, fingerprint="two") as others:
        await find(materializer, others)
    assert (shelf.num_located, len(shelf.downloads)) == (2, 4)


async def test_an_unknown_name_leaves_nothing(
    materializer: Materializer, calls: ResolverCalls, store: DiskStore
) -> None:
    assert await materializer.find(calls, "base", "unknown") is None
    assert (list((store.root / "refs").iterdir()), store.nbytes) == ([], 0)


async def test_a_name_that_its_source_has_given_up_is_forgotten(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore, clock: Clock
) -> None:
    await find(materializer, calls)
    del shelf.uploads["sql"]
    clock.now += 300
    assert await materializer.find(calls, "base", "sql") is None
    assert list((store.root / "refs").iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "gives_digests", "message"),
    [
        (lambda content: content[:-1], True, "adapter_config.json has 1 bytes instead of 2"),
        (lambda content: content + b"x", False, "adapter_config.json is larger|has 3 bytes instead of 2"),
        (lambda content: content[:-1] + b"x", True, "adapter_config.json has sha256 .* instead of"),
    ],
    ids=["short", "long", "corrupt"],
)
async def test_bytes_that_are_not_those_of_the_source_are_never_published(
    materializer: Materializer,
    calls: ResolverCalls,
    shelf: Shelf,
    store: DiskStore,
    sent: object,
    gives_digests: bool,
    message: str,
) -> None:
    shelf.sent = sent  # type: ignore[assignment]  # a function, as in the table above
    shelf.gives_digests = gives_digests
    with pytest.raises(ResolverFailed, match=message):
        await materializer.find(calls, "base", "sql")
    assert (len(shelf.downloads), store.nbytes) == (3, 0)
    assert_nothing_is_staged(store)


async def test_a_download_that_broke_off_is_begun_again(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    shelf.failures = [ConnectionResetError("cut"), TimeoutError("read")]
    await find(materializer, calls)
    assert shelf.downloads == [CONFIG_NAME] * 3 + [WEIGHTS_NAME]


async def test_a_download_that_does_not_stop_is_stopped(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore
) -> None:
    shelf.sent = lambda content: content * 1000
    shelf.hangs = True
    with pytest.raises(ResolverFailed, match=r"adapter_config\.json is larger than the 2 bytes that were told"):
        await materializer.find(calls, "base", "sql")
    assert_nothing_is_staged(store)


async def test_a_download_of_which_nothing_comes_is_given_up(
    materializer: Materializer,
    calls: ResolverCalls,
    shelf: Shelf,
    store: DiskStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(materializer_module, "STALL_SECONDS", 0.05)
    shelf.hangs = True
    with pytest.raises(ResolverFailed, match=r"nothing of adapter_config\.json has come for 0\.05 s"):
        await materializer.find(calls, "base", "sql")
    assert_nothing_is_staged(store)


async def test_a_source_that_changes_meanwhile_is_located_again(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    shelf.failures = [SourceChanged("gone"), SourceChanged("gone")]
    await find(materializer, calls)
    assert shelf.num_located == 3
    del shelf.uploads["sql"]
    shelf.uploads["other"] = Upload(b"other")
    shelf.failures = [SourceChanged("gone")] * 9
    with pytest.raises(SourceChanged):
        await materializer.find(calls, "base", "other")
    assert shelf.num_located == 6


async def test_an_adapter_above_the_limit_is_not_fetched(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    shelf.uploads["large"] = Upload(b"x" * 999)
    with pytest.raises(AdapterInvalid, match=r"its files have 1001 bytes; the limit is 1000"):
        await materializer.find(calls, "base", "large")
    assert shelf.downloads == []


async def test_a_resolver_that_locates_something_else_is_at_fault(
    materializer: Materializer, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = await shelf.locate("base", "sql")
    assert located is not None
    swapped = RemoteAdapter("v1", "shelf://sql", config=located.weights, weights=located.config)

    async def locate(_base: str, _name: str) -> RemoteAdapter:
        return swapped

    monkeypatch.setattr(shelf, "locate", locate)
    async with calls_of(shelf) as calls:
        with pytest.raises(ResolverFailed, match=r"resolver 'shelf' located .* instead of"):
            await materializer.find(calls, "base", "sql")


async def test_during_an_outage_what_is_stored_is_served_however_old(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore, clock: Clock
) -> None:
    await find(materializer, calls)
    clock.now += 10_000_000
    shelf.outage = ConnectionRefusedError("down")
    assert (await find(materializer, calls)).revision == "v1"
    with pytest.raises(ResolverFailed):
        await materializer.find(calls, "base", "sql", is_refresh=True)
    shelf.outage = ResolverFailed("403", retryable=False)  # no outage: access was taken away
    with pytest.raises(ResolverFailed, match="403"):
        await materializer.find(calls, "base", "sql")
    assert_nothing_is_held(store)


async def test_whoever_leaves_during_a_download_leaves_nothing_behind(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore
) -> None:
    shelf.hangs = True
    finding = asyncio.create_task(materializer.find(calls, "base", "sql"))
    async with asyncio.timeout(30):
        while not shelf.downloads:  # noqa: ASYNC110 - it happens on another loop
            await asyncio.sleep(0)
    finding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finding
    assert_nothing_is_staged(store)
    assert store.nbytes == 0


@pytest.mark.parametrize("num_turns", range(0, 40, 3))
async def test_whoever_leaves_at_any_moment_leaves_nothing_behind(
    materializer: Materializer, calls: ResolverCalls, store: DiskStore, num_turns: int
) -> None:
    finding = asyncio.create_task(materializer.find(calls, "base", "sql"))
    for _ in range(num_turns):
        await asyncio.sleep(0.0002)  # let threads and the other loop go on for a moment; any moment will do
    finding.cancel()
    (outcome,) = await asyncio.gather(finding, return_exceptions=True)
    if isinstance(outcome, Found):
        outcome.release()
    async with asyncio.timeout(30):
        while store._stagings or store._holds.digests() or any((store.root / "tmp").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0)  # threads are on their way out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_from_a_source_that_fails(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore, number: int
) -> None:
    shelf.failures = [OSError(number, "no space")]
    with pytest.raises(StoreFull):
        await materializer.find(calls, "base", "sql")
    assert_nothing_is_staged(store)


async def test_what_is_found_is_held_until_it_is_released(
    calls: ResolverCalls, shelf: Shelf, tmp_path: Path, clock: Clock
) -> None:
    shelf.uploads["big"] = Upload(b"x" * 2000)
    with DiskStore.open(tmp_path / "small", max_bytes=12_000, min_free_bytes=0) as store:
        materializer = Materializer(store, now=clock)
        held = await materializer.find(calls, "base", "sql")
        assert held is not None
        folder = Path(held.lora_request.lora_path)
        for index in range(8):
            shelf.uploads[f"other-{index}"] = Upload(b"%d" % index * 1000)
            await find(materializer, calls, f"other-{index}")
            assert folder.is_dir()  # noqa: ASYNC240 - a look at a local folder
        held.release()
        assert store.nbytes <= 12_000


async def test_a_rejected_adapter_is_fetched_anew(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, store: DiskStore
) -> None:
    found = await materializer.find(calls, "base", "sql")
    assert found is not None
    await materializer.reject("base", found)
    assert (store.nbytes, list((store.root / "refs").iterdir())) == (0, [])
    await find(materializer, calls)
    assert len(shelf.downloads) == 4


async def test_a_rejected_newer_version_leaves_the_name_with_what_it_meant(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf, clock: Clock
) -> None:
    good = await find(materializer, calls)
    shelf.uploads["sql"] = Upload(b"junk", revision="v2")
    bad = await materializer.find(calls, "base", "sql", is_refresh=True)
    assert bad is not None and bad.revision == "v2"
    await materializer.reject("base", bad)
    shelf.outage = ConnectionRefusedError("down")
    clock.now += 10_000
    assert (await find(materializer, calls)).lora_request == good.lora_request


async def test_a_config_above_the_limit_is_not_fetched(store: DiskStore, calls: ResolverCalls, shelf: Shelf) -> None:
    shelf.uploads["odd"] = Upload(b"weights", config=b" " * (MAX_CONFIG_NBYTES + 1))
    with pytest.raises(AdapterInvalid, match=r"its adapter_config\.json has 262145 bytes; the limit is 262144"):
        await Materializer(store).find(calls, "base", "odd")
    assert shelf.downloads == []


async def test_two_names_with_one_content_share_one_folder(
    materializer: Materializer, calls: ResolverCalls, shelf: Shelf
) -> None:
    shelf.uploads["copy"] = Upload(b"weights of sql", revision="other")
    one, other = await find(materializer, calls), await find(materializer, calls, "copy")
    assert one.lora_request.lora_path == other.lora_request.lora_path
    assert (one.root, other.root) == ("shelf://sql", "shelf://copy")


def assert_nothing_is_held(store: DiskStore) -> None:
    assert store._holds.digests() == []


@asynccontextmanager
async def found_with_defaults(store: DiskStore, shelf: Shelf, clock: Clock) -> AsyncIterator[Found]:
    async with calls_of(shelf) as calls:
        materializer = Materializer(store, max_adapter_nbytes=1000, fetches_defaults=True, now=clock)
        found = await materializer.find(calls, "base", "sql")
        assert found is not None
        if found.confirm is not None:
            found.confirm()
        yield found
        found.release()


async def test_what_an_adapter_brings_is_fetched_once_and_kept_with_its_name(store, shelf, clock) -> None:
    shelf.uploads["sql"].defaults = {"chat_template.jinja": b"{{ messages }}"}

    for _ in range(2):
        async with found_with_defaults(store, shelf, clock) as found:
            assert found.defaults == {"chat_template.jinja": "{{ messages }}"}
            folder = found.lora_request.lora_path
            assert sorted(os.listdir(folder)) == sorted(STORED_NAMES)  # noqa: PTH208  # one call, no blocking walk
    assert shelf.downloads.count("chat_template.jinja") == 1


async def test_nothing_is_fetched_besides_unless_it_is_wanted(materializer, calls, shelf) -> None:
    shelf.uploads["sql"].defaults = {"chat_template.jinja": b"{{ messages }}"}

    found = await materializer.find(calls, "base", "sql")

    assert found is not None and found.defaults == {}
    assert shelf.downloads == [CONFIG_NAME, WEIGHTS_NAME]


async def test_an_adapter_that_was_stored_without_is_fetched_again_when_they_are_wanted(
    store, materializer, calls, shelf, clock
) -> None:
    shelf.uploads["sql"].defaults = {"generation_config.json": b"{}"}
    found = await materializer.find(calls, "base", "sql")
    assert found is not None and found.confirm is not None
    found.confirm()
    found.release()

    async with found_with_defaults(store, shelf, clock) as found:
        assert found.defaults == {"generation_config.json": "{}"}


@pytest.mark.parametrize(
    ("defaults", "reason"),
    [
        ({"chat_template.jinja": b"x" * 131_073}, "131073 bytes; the limit is 131072"),
        ({"chat_template.jinja": b"\xff"}, "not UTF-8"),
    ],
)
async def test_what_cannot_be_used_makes_the_adapter_invalid(
    store, shelf, clock, defaults: dict[str, bytes], reason: str
) -> None:
    shelf.uploads["sql"].defaults = defaults

    with pytest.raises(AdapterInvalid, match=reason):
        async with found_with_defaults(store, shelf, clock):
            pass


async def test_a_resolver_that_locates_other_files_broke_its_contract(store, shelf, clock) -> None:
    shelf.uploads["sql"].defaults = {"../evil": b"x"}

    with pytest.raises(ResolverFailed, match="other files"):
        async with found_with_defaults(store, shelf, clock):
            pass
