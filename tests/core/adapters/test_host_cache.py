"""One load for many waiters, nothing that is held is ever evicted, and everybody at the door gets a turn."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random

import pytest
import torch

from loramux.adapters.host_cache import MAX_OVERTAKES, HostCache
from loramux.adapters.lease import Lease, give_up
from loramux.adapters.packed import PackedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, EngineDead, RequestInvalid
from loramux.lora.request import LoRARequest

PATIENCE_SECONDS = 20  # for a future that is about to be done; only a failing test waits that long


class FakeDisk:
    """Adapters made on demand; `hold` makes loads wait until `let_through`, `broken` names what cannot be read."""

    def __init__(self) -> None:
        self.num_loads: Counter[str] = Counter()
        self.broken: dict[str, Exception] = {}
        self.content: dict[str, str] = {}
        self.readers: set[str] = set()
        self._gate = threading.Event()
        self._gate.set()
        self._lock = threading.Lock()

    def hold(self) -> None:
        self._gate.clear()

    def let_through(self) -> None:
        self._gate.set()

    def load(self, request: LoRARequest) -> PackedAdapter:
        assert self._gate.wait(PATIENCE_SECONDS)
        with self._lock:
            self.num_loads[request.lora_name] += 1
            self.readers.add(threading.current_thread().name)
        if request.lora_name in self.broken:
            raise self.broken[request.lora_name]
        digest = self.content.get(request.lora_name, f"digest of {request.lora_path}")
        return PackedAdapter(request.lora_name, digest, torch.zeros(4), {}, 1)


class Events:
    """What the cache told its owner."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def adapter_loaded(self, request: LoRARequest) -> None:
        self.seen.append(("loaded", request.lora_name))

    def adapter_dropped(self, request: LoRARequest, *, unloaded: bool) -> None:
        self.seen.append(("unloaded" if unloaded else "evicted", request.lora_name))


def adapter(number: int) -> LoRARequest:
    return LoRARequest(f"adapter{number}", number, f"/adapters/{number}")


def got(future: Future[Lease]) -> Lease:
    return future.result(timeout=PATIENCE_SECONDS)


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def make_cache(disk: FakeDisk) -> Iterator[Callable[..., HostCache]]:
    caches: list[HostCache] = []

    def make(
        capacity: int = 2, events: Events | None = None, begin_thread: Callable[[], None] | None = None
    ) -> HostCache:
        caches.append(HostCache(capacity=capacity, load=disk.load, listener=events, begin_thread=begin_thread))
        return caches[-1]

    yield make
    disk.let_through()
    for cache in caches:
        cache.close()


MakeCache = Callable[..., HostCache]


def resident(cache: HostCache, *numbers: int) -> None:
    """Load adapters that nobody holds."""
    for number in numbers:
        got(cache.acquire(adapter(number))).release()


def test_every_thread_that_reads_adapters_is_prepared_first(make_cache: MakeCache, disk: FakeDisk) -> None:
    prepared: set[str] = set()
    cache = make_cache(begin_thread=lambda: prepared.add(threading.current_thread().name))
    resident(cache, 1, 2)
    assert disk.readers <= prepared


# --- ids


def test_an_id_is_free_again_when_everybody_who_waited_for_it_has_left(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    held = got(cache.acquire(adapter(1)))
    waiting = cache.acquire(adapter(2))
    with pytest.raises(RequestInvalid, match="already belongs to adapter 'adapter2'"):
        cache.acquire(LoRARequest("other", 2, "/adapters/other"))

    give_up(waiting)
    other = cache.acquire(LoRARequest("other", 2, "/adapters/other"))

    held.release()
    assert got(other).adapter.name == "other"


def test_a_pin_that_would_leave_no_place_is_refused(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=2)
    resident(cache, 1, 2)
    assert cache.pin(1)

    with pytest.raises(RequestInvalid, match=r"id 2 cannot be pinned: one of 2 places .*max_cpu_loras"):
        cache.pin(2)

    resident(cache, 3)
    assert cache.ids() == {1, 3}


# --- loading


def test_many_waiters_share_one_load(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    disk.hold()
    futures = [cache.acquire(adapter(1)) for _ in range(10)]
    disk.let_through()

    leases = [got(future) for future in futures]

    assert disk.num_loads == {"adapter1": 1}
    assert cache.num_leases == 10
    assert len({id(lease.adapter) for lease in leases}) == 1


def test_a_resident_adapter_is_leased_at_once(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    resident(cache, 1)

    assert cache.acquire(adapter(1)).done()
    assert disk.num_loads == {"adapter1": 1}


def test_an_adapter_is_not_listed_before_it_is_there(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    disk.hold()
    future = cache.acquire(adapter(1))
    assert cache.ids() == set()
    assert cache.adapter(1) is None
    assert not cache.pin(1)

    disk.let_through()
    lease = got(future)
    assert cache.ids() == {1}
    assert cache.adapter(1) is lease.adapter


def test_a_failing_load_fails_its_waiters_only_and_may_be_retried(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    disk.broken["adapter1"] = AdapterInvalid("adapter1", "no good")
    disk.hold()
    failing = [cache.acquire(adapter(1)) for _ in range(3)]
    fine = cache.acquire(adapter(2))
    disk.let_through()

    for future in failing:
        with pytest.raises(AdapterInvalid, match="no good"):
            got(future)
    got(fine).release()
    del disk.broken["adapter1"]
    got(cache.acquire(adapter(1))).release()
    assert cache.num_leases == 0


def test_a_failed_adapter_leaves_its_id_to_others(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    disk.broken["adapter1"] = AdapterInvalid("adapter1", "no good")
    with pytest.raises(AdapterInvalid):
        got(cache.acquire(adapter(1)))

    assert got(cache.acquire(LoRARequest("other", 1, "/other"))).adapter.name == "other"


def test_a_bug_in_the_reader_fails_the_adapter_and_not_the_cache(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    disk.broken["adapter1"] = ZeroDivisionError("oops")

    with pytest.raises(AdapterInvalid, match=r"adapter 'adapter1': could not be read: ZeroDivisionError: oops"):
        got(cache.acquire(adapter(1)))
    got(cache.acquire(adapter(2))).release()


def test_a_listeners_bug_keeps_nobody_waiting(make_cache: MakeCache) -> None:
    events = Events()
    events.adapter_loaded = lambda request: 1 / 0  # type: ignore[method-assign,assignment]
    cache = make_cache(events=events)

    with pytest.raises(AdapterInvalid, match="ZeroDivisionError"):
        got(cache.acquire(adapter(1)))


# --- identity


@pytest.mark.parametrize("other", [LoRARequest("adapter1", 1, "/elsewhere"), LoRARequest("other", 1, "/adapters/1")])
def test_one_id_for_two_adapters_is_refused(make_cache: MakeCache, other: LoRARequest) -> None:
    cache = make_cache()
    resident(cache, 1)

    with pytest.raises(RequestInvalid, match=r"lora_int_id 1 already belongs to adapter 'adapter1' at '/adapters/1'"):
        cache.acquire(other)
    assert cache.num_waiting == 0


def test_an_evicted_adapter_keeps_its_id(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    resident(cache, 1, 2)

    with pytest.raises(RequestInvalid):
        cache.acquire(LoRARequest("other", 1, "/other"))


def test_a_removed_adapter_leaves_its_id_to_others(make_cache: MakeCache) -> None:
    cache = make_cache()
    resident(cache, 1)
    cache.remove(1)

    assert got(cache.acquire(LoRARequest("other", 1, "/other"))).adapter.name == "other"


# --- eviction


def test_the_least_recently_used_adapter_is_evicted(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=3)
    resident(cache, 1, 2, 3, 1, 4)

    assert cache.ids() == {1, 3, 4}


def test_a_held_adapter_is_never_evicted(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=2)
    held = got(cache.acquire(adapter(1)))
    resident(cache, 2, 3, 4)

    assert cache.ids() == {1, 4}
    held.release()
    resident(cache, 5)
    assert 1 not in cache.ids() or 4 not in cache.ids()


def test_a_pinned_adapter_is_never_evicted_until_it_is_unpinned(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=2)
    resident(cache, 1)
    assert cache.pin(1)
    resident(cache, 2, 3, 4)
    assert cache.ids() == {1, 4}

    cache.unpin(1)
    resident(cache, 5)
    assert cache.ids() == {4, 5}


def test_an_adapter_that_cannot_be_read_evicts_nobody(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=2)
    resident(cache, 1, 2)
    disk.broken["adapter3"] = AdapterInvalid("adapter3", "is broken")

    with pytest.raises(AdapterInvalid):
        got(cache.acquire(adapter(3)))
    resident(cache, 1, 2)

    assert cache.ids() == {1, 2}
    assert disk.num_loads == {"adapter1": 1, "adapter2": 1, "adapter3": 1}


@pytest.mark.parametrize("is_broken", [False, True])
def test_who_asks_for_an_adapter_that_is_giving_up_its_place_is_served(
    disk: FakeDisk, make_cache: MakeCache, is_broken: bool
) -> None:
    cache = make_cache(capacity=1)
    resident(cache, 1)
    if is_broken:
        disk.broken["adapter2"] = AdapterInvalid("adapter2", "is broken")
    disk.hold()
    successor = cache.acquire(adapter(2))
    first_again = cache.acquire(adapter(1))
    assert not first_again.done()
    assert not cache.pin(1)

    disk.let_through()
    if is_broken:
        assert isinstance(successor.exception(PATIENCE_SECONDS), AdapterInvalid)
    else:
        got(successor).release()

    assert got(first_again).adapter.name == "adapter1"
    assert disk.num_loads["adapter1"] == (1 if is_broken else 2)


def test_an_adapter_removed_while_it_gives_up_its_place_is_gone_once(disk: FakeDisk, make_cache: MakeCache) -> None:
    events = Events()
    cache = make_cache(capacity=1, events=events)
    resident(cache, 1)
    disk.hold()
    successor = cache.acquire(adapter(2))

    assert cache.remove(1)
    disk.let_through()
    got(successor).release()

    assert [event for event in events.seen if event[1] == "adapter1"] == [
        ("loaded", "adapter1"),
        ("unloaded", "adapter1"),
    ]
    assert cache.ids() == {2}


def test_unpinning_lets_in_who_waits_at_the_door(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    resident(cache, 1)
    cache.pin(1)
    future = cache.acquire(adapter(2))
    assert cache.num_waiting == 1

    cache.unpin(1)

    assert got(future).adapter.name == "adapter2"


def test_an_unknown_adapter_cannot_be_pinned_or_removed(make_cache: MakeCache) -> None:
    cache = make_cache()
    assert not cache.pin(7)
    assert not cache.remove(7)


def test_the_owner_hears_of_every_coming_and_going(make_cache: MakeCache) -> None:
    events = Events()
    cache = make_cache(capacity=1, events=events)
    resident(cache, 1, 2)
    cache.remove(2)

    assert events.seen == [
        ("loaded", "adapter1"),
        ("loaded", "adapter2"),
        ("evicted", "adapter1"),
        ("unloaded", "adapter2"),
    ]


# --- leases


def test_releasing_a_lease_twice_is_releasing_it_once(make_cache: MakeCache) -> None:
    cache = make_cache()
    first, second = got(cache.acquire(adapter(1))), got(cache.acquire(adapter(1)))

    first.release()
    first.release()

    assert cache.num_leases == 1
    second.release()
    assert cache.num_leases == 0


def test_a_waiter_that_gives_up_while_its_adapter_loads_holds_nothing(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    disk.hold()
    leaving, staying = cache.acquire(adapter(1)), cache.acquire(adapter(1))
    give_up(leaving)
    disk.let_through()

    got(staying).release()

    assert cache.num_leases == 0
    got(cache.acquire(adapter(2))).release()


def test_a_waiter_that_gives_up_at_the_door_loads_nothing(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    held = got(cache.acquire(adapter(1)))
    give_up(cache.acquire(adapter(2)))
    next_one = cache.acquire(adapter(3))
    assert cache.num_waiting == 1

    held.release()

    got(next_one).release()
    assert disk.num_loads["adapter2"] == 0
    assert cache.num_leases == 0


def test_a_lease_that_comes_after_giving_up_is_released() -> None:
    """The loader has begun to hand it out: too late to cancel, too early to release."""
    released: list[bool] = []
    future: Future[Lease] = Future()
    future.set_running_or_notify_cancel()

    give_up(future)
    future.set_result(Lease(PackedAdapter("a", "d", torch.zeros(1), {}, 1), lambda: released.append(True)))

    assert released == [True]


def test_giving_up_what_failed_is_harmless() -> None:
    future: Future[Lease] = Future()
    future.set_exception(AdapterInvalid("a", "no good"))

    give_up(future)


# --- removal


def test_a_removed_adapters_memory_is_freed_now_when_nobody_holds_it(make_cache: MakeCache) -> None:
    cache = make_cache()
    lease = got(cache.acquire(adapter(1)))
    slab = weakref.ref(lease.adapter.slab)
    lease.release()
    del lease

    assert cache.remove(1)

    assert slab() is None
    assert cache.ids() == set()


def test_a_removed_adapter_stays_for_those_who_hold_it(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    first, second = got(cache.acquire(adapter(1))), got(cache.acquire(adapter(1)))
    slab = weakref.ref(first.adapter.slab)
    cache.remove(1)
    next_one = cache.acquire(adapter(2))

    first.release()
    assert cache.ids() == set()
    assert cache.num_leases == 1
    assert not next_one.done(), "its memory is still taken"
    second.release()
    del first, second

    assert slab() is None
    got(next_one).release()


def test_a_removed_adapter_that_comes_again_is_read_again(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    old = got(cache.acquire(adapter(1)))
    cache.remove(1)
    disk.content["adapter1"] = "new"

    new = got(cache.acquire(adapter(1)))

    assert (old.adapter.digest, new.adapter.digest) == ("digest of /adapters/1", "new")
    assert cache.num_leases == 2


def test_an_adapter_can_be_removed_again_before_its_last_holders_ended(make_cache: MakeCache) -> None:
    """Both generations have the same id, name, path and content, and are still two."""
    cache = make_cache(capacity=2)
    leases = []
    for _ in range(2):
        leases.append(got(cache.acquire(adapter(1))))
        cache.remove(1)
    next_one = cache.acquire(adapter(2))

    leases[1].release()
    assert got(next_one).adapter.name == "adapter2"
    leases[0].release()
    assert cache.num_leases == 1
    assert cache.num_waiting == 0


def test_an_adapter_removed_while_it_loads_serves_its_waiters_and_goes(disk: FakeDisk, make_cache: MakeCache) -> None:
    events = Events()
    cache = make_cache(capacity=1, events=events)
    disk.hold()
    future = cache.acquire(adapter(1))
    cache.remove(1)
    next_one = cache.acquire(adapter(2))
    assert cache.num_waiting == 1, "its memory is taken already"
    disk.let_through()

    got(future).release()

    got(next_one).release()
    assert cache.ids() == {2}
    cache.close()
    of_the_first = [kind for kind, name in events.seen if name == "adapter1"]
    assert of_the_first == ["loaded", "unloaded"]


def test_a_load_that_fails_after_its_removal_frees_its_place(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    disk.broken["adapter1"] = AdapterInvalid("adapter1", "no good")
    disk.hold()
    future = cache.acquire(adapter(1))
    cache.remove(1)
    disk.let_through()

    with pytest.raises(AdapterInvalid):
        got(future)
    got(cache.acquire(adapter(2))).release()


def test_removing_an_adapter_fails_those_at_the_door_for_it(disk: FakeDisk, make_cache: MakeCache) -> None:
    """Else it would come back under an id that may belong to another adapter by then."""
    cache = make_cache(capacity=1)
    held = got(cache.acquire(adapter(1)))
    waiting = cache.acquire(adapter(2))

    assert cache.remove(2)

    with pytest.raises(AdapterNotFound):
        got(waiting)
    moved = cache.acquire(LoRARequest("adapter2", 2, "/moved"))
    held.release()
    assert got(moved).adapter.digest == "digest of /moved"


def test_contents_are_told_apart_from_ids(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache()
    disk.content = {"adapter1": "same", "adapter2": "same"}
    resident(cache, 1, 2)
    cache.pin(1)
    assert cache.has_content("same", pinned=True)

    cache.remove(1)
    assert cache.has_content("same")
    assert not cache.has_content("same", pinned=True)
    cache.remove(2)
    assert not cache.has_content("same")


# --- the door


def test_who_finds_no_room_waits_and_is_served_in_order(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    held = got(cache.acquire(adapter(1)))
    assert not cache.has_room(adapter(2))
    assert cache.has_room(adapter(1))
    order: list[int] = []
    futures = []
    for number in (2, 3, 4):
        future = cache.acquire(adapter(number))
        future.add_done_callback(lambda _future, number=number: order.append(number))  # type: ignore[misc]
        futures.append(future)
    assert cache.num_waiting == 3

    held.release()
    for future in futures:
        got(future).release()

    assert order == [2, 3, 4]
    assert cache.num_leases == 0


def test_a_small_adapter_crowd_takes_turns_without_deadlock(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=2)
    futures = [cache.acquire(adapter(1 + index % 7)) for index in range(35)]

    for future in _as_they_come(futures):
        got(future).release()

    assert cache.num_leases == 0
    assert cache.num_waiting == 0
    assert len(cache.ids()) == 2


def _as_they_come(futures: list[Future[Lease]]) -> Iterator[Future[Lease]]:
    """Those that are ready first: waiting in order of asking would hold what others need."""
    arrived: list[Future[Lease]] = []
    some = threading.Condition()

    def arrive(future: Future[Lease]) -> None:
        with some:
            arrived.append(future)
            some.notify()

    for future in futures:
        future.add_done_callback(arrive)
    for _ in futures:
        with some:
            assert some.wait_for(lambda: arrived, timeout=PATIENCE_SECONDS)
            future = arrived.pop(0)
        yield future


def test_resident_adapters_cannot_keep_others_out_for_ever(make_cache: MakeCache) -> None:
    """Both are asked for again before they are released, so neither is ever idle by itself."""
    cache = make_cache(capacity=2)
    holders = {number: got(cache.acquire(adapter(number))) for number in (1, 2)}
    rare = cache.acquire(adapter(3))

    num_turns = 0
    waiting: dict[int, Future[Lease]] = {}
    while not waiting:
        num_turns += 1
        for number, old in list(holders.items()):
            future = cache.acquire(adapter(number))
            if future.done():
                holders[number] = got(future)
            else:
                waiting[number] = future
                del holders[number]
            old.release()
        assert num_turns <= MAX_OVERTAKES

    got(rare).release()
    for future in waiting.values():
        got(future).release()


def test_those_kept_back_go_on_when_the_first_at_the_door_gives_up(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    held = got(cache.acquire(adapter(1)))
    rare = cache.acquire(adapter(2))
    leases = [got(cache.acquire(adapter(1))) for _ in range(MAX_OVERTAKES)]
    kept_back = cache.acquire(adapter(1))
    assert not kept_back.done()
    assert not cache.has_room(adapter(1))

    give_up(rare)
    held.release()

    assert got(kept_back).adapter.name == "adapter1"
    assert cache.num_leases == len(leases) + 1


# --- the end


def test_closing_fails_who_waits_at_the_door(make_cache: MakeCache) -> None:
    cache = make_cache(capacity=1)
    got(cache.acquire(adapter(1)))
    waiting = cache.acquire(adapter(2))

    cache.close()

    with pytest.raises(EngineDead):
        got(waiting)
    with pytest.raises(EngineDead):
        cache.acquire(adapter(1))


def test_closing_fails_who_waits_for_a_load_that_no_thread_has_begun(disk: FakeDisk, make_cache: MakeCache) -> None:
    cache = make_cache(capacity=10)
    disk.hold()
    futures = [cache.acquire(adapter(number)) for number in range(1, 11)]
    closing = threading.Thread(target=cache.close)
    closing.start()
    while not cache._threads._shutdown:
        pass
    with cache._threads._shutdown_lock:  # it is free again when the loads that nobody had begun are cancelled
        pass
    disk.let_through()
    closing.join()

    outcomes = Counter(type(future.exception(timeout=PATIENCE_SECONDS)) for future in futures)
    assert outcomes[EngineDead] > 0
    assert outcomes[EngineDead] + outcomes[type(None)] == len(futures)


def test_closing_forgets_removed_adapters_that_no_thread_has_begun_to_read(
    disk: FakeDisk, make_cache: MakeCache
) -> None:
    cache = make_cache(capacity=8)
    disk.hold()
    for number in range(1, 6):
        give_up(cache.acquire(adapter(number)))
        cache.remove(number)
    closing = threading.Thread(target=cache.close)
    closing.start()
    disk.let_through()
    closing.join()

    assert (cache.num_leases, cache.ids(), cache._leaving) == (0, set(), [])


def test_many_threads_leave_nothing_behind(disk: FakeDisk, make_cache: MakeCache) -> None:
    """Acquire, release, give up, pin, remove from eight threads at once; then the books must balance."""
    cache = make_cache(capacity=3)
    start = threading.Barrier(8)
    faults: list[BaseException] = []

    def hammer(seed: int) -> None:
        random = Random(seed)
        start.wait(PATIENCE_SECONDS)
        try:
            for _ in range(150):
                request = adapter(random.randint(1, 6))
                future = cache.acquire(request)
                choice = random.random()
                if choice < 0.3:
                    give_up(future)
                    continue
                if choice < 0.35:
                    cache.remove(request.lora_int_id)
                try:
                    lease = got(future)
                except AdapterNotFound:
                    continue  # another thread removed it at the door
                assert lease.adapter.name == request.lora_name
                assert len(cache.ids()) <= 3
                lease.release()
        except BaseException as fault:
            faults.append(fault)
            raise

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert faults == []
    for number in range(1, 7):
        cache.remove(number)
    cache.close()
    assert (cache.num_leases, cache.num_waiting, cache.ids(), cache._leaving) == (0, 0, set(), [])
