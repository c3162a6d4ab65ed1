"""A hypothesis machine over the real chain, store, registry, host cache and slots, with a fake clock and a fake source.

It does to them what clients, operators, the source and the clock do, in any order, and starts the process again; after
every step it checks the invariants of the adapter's life (I2 atomic, I3 identity, and so on).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loramux.adapters import retrying
from loramux.adapters.digest import digest_of_folder
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.host_cache import HostCache
from loramux.adapters.lease import Lease, give_up
from loramux.adapters.materializer import Materializer
from loramux.adapters.packed import PackedAdapter
from loramux.adapters.registry import AdapterRegistry, Patience
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter, ServedAdapter
from loramux.adapters.slots import SlotTable
from loramux.errors import AdapterInvalid, AdapterNotFound, LoramuxError, ResolverDenied, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME, RemoteAdapter, RemoteFile
from loramux.lora.request import LoRARequest
from loramux.lora.resolver_policy import ResolverPolicy
from remote_cases import Shelf, Upload

NAMES = ("sql", "team/json", "a@b")
PATIENCE_SECONDS = 30.0  # of a failing test; nothing here waits for real time
QUOTA = 12_000
BROKEN = b"broken"  # what the fake engine refuses


class FakeClockLoop(asyncio.SelectorEventLoop):
    """Its timers go off when the test says so."""

    now = 1_000_000.0

    def time(self) -> float:
        return self.now


class MoodyShelf(Shelf):
    """A source that answers, hangs, is out of order or denies, as the test says; it counts what overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.mood = "ok"
        self.corrupts = False
        self.hanging: Counter[str] = Counter()
        self.fetching: Counter[str] = Counter()
        self.most_fetching = 0

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
        match self.mood:
            case "hang":
                self.hanging[lora_name] += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hanging[lora_name] -= 1
            case "down":
                raise ResolverFailed("out of order")
            case "deny":
                raise ResolverDenied("not for you")
        return await super().locate(base_model_name, lora_name)

    async def download(self, file: RemoteFile, destination: Path) -> None:
        key = str(destination.parent)
        self.fetching[key] += 1
        self.most_fetching = max(self.most_fetching, self.fetching[key])
        try:
            assert isinstance(file.handle, bytes)
            content = file.handle[:-1] + b"?" if self.corrupts else file.handle
            await asyncio.to_thread(destination.write_bytes, content)
        finally:
            self.fetching[key] -= 1


@dataclass(eq=False)
class Caller:
    """One request: what it asked for, what it got, and what it holds meanwhile."""

    name: str
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    served: ServedAdapter | None = None
    lease: Lease | None = None
    has_slot: bool = False
    error: LoramuxError | None = None
    task: asyncio.Task[None] | None = None


class LifecycleMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lifecycle-"))
        self.loop = FakeClockLoop()
        self.delay = retrying.FIRST_DELAY_SECONDS
        retrying.FIRST_DELAY_SECONDS = 0.0
        self.shelf = MoodyShelf()
        self.contents: dict[str, set[bytes]] = {name: set() for name in NAMES}
        self.callers: list[Caller] = []
        self.last_id: dict[str, int] = {}
        self.num_uploads = 0
        self._start()

    # --- the process

    def _start(self) -> None:
        self.store = DiskStore.open(self.folder / "store", max_bytes=QUOTA, min_free_bytes=0)
        self.cache = HostCache(capacity=2, load=self._read)
        self.slots = SlotTable(1)
        policy = ResolverPolicy(revalidate_seconds=300, unknown_seconds=30, timeout_seconds=10)
        materializer = Materializer(self.store, now=lambda: self.loop.now)
        self.chain = ResolverChain(
            [ActiveResolver("shelf", self.shelf, policy, "one")], materializer, clock=lambda: self.loop.now
        )
        self.registry = AdapterRegistry(
            ["base"],
            self.chain,
            self._load,
            self._unload,
            patience=Patience(lora_wait_seconds=5, flight_seconds=60),
            clock=lambda: self.loop.now,
        )
        self.last_id = {}

    def _stop(self) -> None:
        for caller in self.callers:
            caller.may_end.set()
            if caller.task is not None:
                caller.task.cancel()
        self._run(self._close())
        self.callers.clear()
        self.cache.close()
        self.store.close()

    async def _close(self) -> None:
        await asyncio.gather(*(caller.task for caller in self.callers if caller.task), return_exceptions=True)
        await self.registry.close()
        await self.chain.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def _read(self, request: LoRARequest) -> PackedAdapter:
        """What the engine's loader does: read both files, check content and digest."""
        folder = Path(request.lora_path)
        try:
            content = (folder / WEIGHTS_NAME).read_bytes()
            digest = digest_of_folder(folder).digest
        except OSError as exc:
            raise AdapterInvalid(request.lora_name, "its folder cannot be opened.") from exc
        if request.digest not in (None, digest):
            raise AdapterInvalid(request.lora_name, "its files have changed since it was found.")
        if content.startswith(BROKEN):
            raise AdapterInvalid(request.lora_name, "is broken.")
        return PackedAdapter(content.decode(), digest, torch.zeros(1), {}, 1)  # the name shows what was read

    async def _load(self, request: LoRARequest) -> LoadedAdapter:
        future = self.cache.acquire(request)
        try:
            adapter = (await asyncio.wrap_future(future)).adapter
        finally:
            give_up(future)
        return LoadedAdapter(adapter.digest, 1, 1)

    async def _unload(self, lora_int_id: int) -> None:
        self.cache.remove(lora_int_id)

    # --- callers

    async def _call(self, caller: Caller) -> None:
        try:
            async with self.registry.use(caller.name) as served:
                assert served is not None
                await self._answer(caller, served)
        except LoramuxError as exc:
            caller.error = exc

    async def _answer(self, caller: Caller, served: ServedAdapter) -> None:
        future = self.cache.acquire(served.lora_request)
        try:
            caller.lease = await asyncio.wrap_future(future)
        except BaseException:
            give_up(future)
            raise
        digest = caller.lease.adapter.digest
        caller.has_slot = self.slots.can_acquire(digest)
        if caller.has_slot:
            self.slots.acquire(digest)
        caller.served = served
        try:
            await caller.may_end.wait()
            assert caller.lease.adapter.digest == served.digest  # I3: one generation to the end
        finally:
            if caller.has_slot:
                self.slots.release(digest)
            caller.lease.release()
            caller.lease = None

    def _settle(self) -> None:
        """Let everything go on until it is done, or waits for a caller, the clock or a source that hangs."""

        async def settle() -> None:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not self._is_settled():
                assert time.monotonic() < deadline, "nothing settles: " + repr(self._unsettled())
                await asyncio.sleep(0)
                time.sleep(0.0001)  # noqa: ASYNC251 - threads are at work, and this loop has nothing to do

        self._run(settle())

    def _unsettled(self) -> list[str]:
        def hangs(name: str) -> bool:
            return self.shelf.hanging[name] > 0 or self.cache.num_waiting > 0  # a source, or a place in memory

        flights = [name for name in NAMES if self.registry._flights.get(name) and not hangs(name)]
        refreshes = [name for name in self.registry._refresher._tasks if not hangs(name)]
        callers = [
            caller.name
            for caller in self.callers
            if caller.task
            and not caller.task.done()
            and caller.served is None
            and not (self.registry._flights.get(caller.name) and hangs(caller.name))
            and self.cache.num_waiting == 0
        ]
        removals = ["removal"] * len(self.registry._generations._removals)
        return flights + refreshes + callers + removals

    def _is_settled(self) -> bool:
        return not self._unsettled()

    # --- rules

    @initialize()
    def _first_uploads(self) -> None:
        for name in NAMES[:2]:
            self.upload(name, is_broken=False)

    @rule(name=st.sampled_from(NAMES), is_broken=st.booleans())
    def upload(self, name: str, is_broken: bool) -> None:
        self.num_uploads += 1
        content = (BROKEN if is_broken else b"weights") + b" %d of %s" % (self.num_uploads, name.encode())
        self.contents[name].add(content)
        self.shelf.uploads[name] = Upload(content, revision=f"v{self.num_uploads}")

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.shelf.uploads.pop(name, None)

    @rule(mood=st.sampled_from(["ok", "ok", "ok", "down", "hang", "deny"]), corrupts=st.booleans())
    def change_mood(self, mood: str, corrupts: bool) -> None:
        self.shelf.mood = mood
        self.shelf.corrupts = corrupts

    @rule(name=st.sampled_from([*NAMES, "unknown", "../etc/passwd"]), count=st.integers(1, 3))
    def request(self, name: str, count: int) -> None:
        for _ in range(count):
            caller = Caller(name)
            caller.task = self.loop.create_task(self._call(caller))
            self.callers.append(caller)
        self._settle()
        self._note_answers()

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), cancels=st.booleans())
    def end_a_request(self, data: st.DataObject, cancels: bool) -> None:
        caller = self.callers.pop(data.draw(st.integers(0, len(self.callers) - 1)))
        assert caller.task is not None
        caller.may_end.set()
        if cancels:
            caller.task.cancel()
        if caller.served is not None or cancels:
            with suppress(asyncio.CancelledError):
                self._run(caller.task)
        else:
            caller.task.cancel()
        self._settle()
        self._note_answers()

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        before = {served.name: served.id for served in self.registry.adapters()}
        with suppress(AdapterNotFound):
            self._run(self.registry.remove(name))
            assert name not in {served.name for served in self.registry.adapters()}  # I11
            self.last_id[name] = before[name]
        self._settle()

    @rule(seconds=st.sampled_from([1, 6, 31, 301, 700]))
    def tick(self, seconds: int) -> None:
        self.loop.now += seconds
        self._settle()
        self._note_answers()

    @rule()
    def die_and_start_again(self) -> None:
        self._stop()
        self._start()

    # --- invariants

    def _note_answers(self) -> None:
        for caller in self.callers:
            served = caller.served
            if caller.error is not None and caller.task is not None and caller.task.done():
                self._check_error(caller)
            if served is None or caller.lease is None:
                continue
            content = caller.lease.adapter.name.encode()
            assert content in self.contents[caller.name], "I3: content that the source never had under this name"
            assert not content.startswith(BROKEN), "never a broken one"
        newest = {served.name: served.id for served in self.registry.adapters()}
        for name, lora_int_id in newest.items():
            assert lora_int_id >= self.last_id.get(name, 0), "I10: an older generation came back"
            self.last_id[name] = lora_int_id

    def _check_error(self, caller: Caller) -> None:
        if isinstance(caller.error, AdapterNotFound):  # I9: never while its source is out of order or hangs
            may_be_unknown = (
                caller.name not in NAMES or self.shelf.mood in ("ok", "deny") or caller.name not in self.shelf.uploads
            )
            remembered = self.chain._members[0]._unknown
            assert may_be_unknown or caller.name in remembered
        caller.error = None

    @invariant()
    def store_holds_only_whole_adapters_within_its_quota(self) -> None:
        under_way = {name for name in NAMES if self.registry._flights.get(name)} | set(self.registry._refresher._tasks)
        if any(self.shelf.hanging[name] == 0 for name in under_way):
            return  # somebody waits for a place in memory, and files may be on their way
        total = 0
        for folder in (self.store.root / "store").glob("*/*"):
            assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, "manifest.json"}
            assert digest_of_folder(folder).digest == folder.name  # I2
            total += sum(path.stat().st_size for path in folder.iterdir())
        assert total == self.store.nbytes <= QUOTA  # I12
        if not self.registry._flights and not self.registry._refresher._tasks:
            assert list((self.store.root / "tmp").iterdir()) == []
            assert self.store._holds.digests() == []

    @invariant()
    def holds_are_those_of_running_requests(self) -> None:
        running = [caller for caller in self.callers if caller.lease is not None]
        if self.cache.num_waiting == 0:  # else some are on their way
            assert self.cache.num_leases == len(running)  # I5
        uses = Counter(caller.served.id for caller in running if caller.served is not None)
        generations = self.registry._generations
        generations.check_integrity()
        assert uses <= Counter({number: record.num_uses for number, record in generations._by_id.items()})
        self.slots.check_integrity()  # I4
        assert sum(self.slots.users().values()) == sum(caller.has_slot for caller in running)

    @invariant()
    def nothing_is_fetched_twice_at_once_and_all_maps_are_bounded(self) -> None:
        assert self.shelf.most_fetching <= 1  # I6
        assert len(self.registry._flights) <= len(NAMES) + 1  # I7

    def teardown(self) -> None:
        for caller in self.callers:
            caller.may_end.set()
        self._stop()
        assert len(self.registry._flights) == 0
        assert all(record.num_uses == 0 for record in self.registry._generations._by_id.values())
        self.loop.close()
        retrying.FIRST_DELAY_SECONDS = self.delay
        shutil.rmtree(self.folder)
