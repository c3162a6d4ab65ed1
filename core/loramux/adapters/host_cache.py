"""HostCache: the adapters kept in host memory, ready to be placed in a slot.

One load per adapter however many requests wait for it; an adapter that a request holds, or that is pinned, is never
evicted. One that is gives up its place when its successor has been read and checked, so never for a broken one. When
every place is held, later adapters wait at the door in order of arrival; requests for resident adapters overtake them,
but only so often. Thread-safe; files are read and checked in the cache's own threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from loramux.adapters.lease import Lease, fail
from loramux.adapters.packed import PackedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, EngineDead, LoramuxError, RequestInvalid
from loramux.lora.request import LoRARequest

NUM_LOADER_THREADS = 2
MAX_OVERTAKES = 32  # leases handed out past the first at the door; then one adapter takes no new ones until it leaves


class CacheListener(Protocol):
    """What the owner of the cache wants to hear; called from any thread, without the cache's lock."""

    def adapter_loaded(self, request: LoRARequest) -> None:
        """Report that an adapter was read, checked and packed."""

    def adapter_dropped(self, request: LoRARequest, *, unloaded: bool) -> None:
        """Report that an adapter left host memory: evicted for another one, or unloaded."""


@dataclass(slots=True, eq=False)
class _Entry:
    request: LoRARequest
    adapter: PackedAdapter | None = None  # None while it is being read
    replaces: _Entry | None = None  # whose place it takes once it is read
    is_yielding: bool = False  # its place is promised to another one
    num_leases: int = 0
    is_pinned: bool = False
    is_removed: bool = False
    waiters: list[Future[Lease]] = field(default_factory=list)


class HostCache:
    """At most `capacity` adapters, least recently used out first.

    `load` reads, checks and packs one adapter; it raises AdapterInvalid.
    """

    def __init__(
        self,
        *,
        capacity: int,
        load: Callable[[LoRARequest], PackedAdapter],
        listener: CacheListener | None = None,
        begin_thread: Callable[[], None] | None = None,
    ) -> None:
        """`load` reads an adapter, in one of the cache's threads, each of which calls `begin_thread` first."""
        self.capacity = capacity
        self._load = load
        self._listener = listener
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._leaving: list[_Entry] = []  # removed, but some request still holds them
        self._door: deque[tuple[LoRARequest, Future[Lease]]] = deque()
        self._first: Future[Lease] | None = None  # at the door, for want of a place
        self._num_overtakes = 0
        self._making_room: _Entry | None = None
        self._names: dict[int, LoRARequest] = {}
        self._threads = ThreadPoolExecutor(
            NUM_LOADER_THREADS, thread_name_prefix="loramux-adapter", initializer=begin_thread
        )
        self._is_closed = False
        self.num_evictions = 0

    @property
    def num_leases(self) -> int:
        with self._lock:
            return sum(entry.num_leases for entry in [*self._entries.values(), *self._leaving])

    @property
    def num_waiting(self) -> int:
        with self._lock:
            return sum(not future.cancelled() for _request, future in self._door)

    @property
    def num_pinned(self) -> int:
        with self._lock:
            return sum(entry.is_pinned for entry in self._entries.values())

    def contents(self) -> list[PackedAdapter]:
        """Return what takes memory now: also what is unloaded already, but still held."""
        with self._lock:
            entries = [*self._entries.values(), *self._leaving]
            return [entry.adapter for entry in entries if entry.adapter is not None]

    def has_room(self, request: LoRARequest) -> bool:
        """Whether `acquire` would start at once, rather than wait for other requests to end."""
        with self._lock:
            if (entry := self._entries.get(request.lora_int_id)) is not None:
                return entry is not self._making_room
            is_free = self._num_places_taken() < self.capacity
            return not self._door and (is_free or any(map(self._is_evictable, self._entries.values())))

    def ids(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        with self._lock:
            return {adapter_id for adapter_id, entry in self._entries.items() if entry.adapter is not None}

    def acquire(self, request: LoRARequest) -> Future[Lease]:
        """Return a future lease; it fails with AdapterInvalid when the adapter cannot be served.

        Raises RequestInvalid when the id already belongs to another name or path.
        """
        future: Future[Lease] = Future()
        with self._lock:
            if self._is_closed:
                raise EngineDead("the engine has been shut down")
            self._check_identity(request)
            self._door.append((request, future))
        self._serve_door()
        return future

    def pin(self, adapter_id: int) -> bool:
        """Keep a resident adapter in host memory; False when it is not there.

        Raises RequestInvalid when that would leave no place for the other adapters.
        """
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.adapter is None or entry.is_yielding:
                return False
            num_pinned = sum(other.is_pinned for other in self._entries.values() if other is not entry)
            if num_pinned + 1 >= self.capacity > 1:  # a single place has a single slot, which is never pinned
                raise RequestInvalid(
                    f"adapter id {adapter_id} cannot be pinned: one of {self.capacity} places in host memory "
                    "(max_cpu_loras) must stay unpinned",
                    param="lora_int_id",
                    code="adapter_pin_refused",
                )
            entry.is_pinned = True
            return True

    def unpin(self, adapter_id: int) -> bool:
        """Undo `pin`; False when it was not pinned."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            was_pinned = entry is not None and entry.is_pinned
            if entry is not None:
                entry.is_pinned = False
        self._serve_door()
        return was_pinned

    def adapter(self, adapter_id: int) -> PackedAdapter | None:
        """Return a resident adapter without using it."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            return None if entry is None else entry.adapter

    def is_pinned(self, adapter_id: int) -> bool:
        """Whether a resident adapter is pinned."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            return entry is not None and entry.is_pinned

    def residents(self) -> list[tuple[int, PackedAdapter, bool]]:
        """Return id, adapter and "is pinned" of all that is in host memory, at one moment."""
        with self._lock:
            entries = [(entry, entry.adapter) for entry in self._entries.values()]
        return [
            (entry.request.lora_int_id, adapter, entry.is_pinned) for entry, adapter in entries if adapter is not None
        ]

    def has_content(self, digest: str, *, pinned: bool = False) -> bool:
        """Whether a resident (and pinned) adapter has this content; several ids may share one content."""
        with self._lock:
            return any(
                entry.adapter is not None and entry.adapter.digest == digest and (entry.is_pinned or not pinned)
                for entry in reversed(self._entries.values())  # what was just used is asked for most
            )

    def remove(self, adapter_id: int) -> bool:
        """Unload an adapter: its memory is freed when the last request that holds it ends. False when unknown.

        Requests that still wait at the door for it fail with AdapterNotFound.
        """
        with self._lock:
            known = self._names.pop(adapter_id, None)
            entry = self._entries.get(adapter_id)
            is_loaded = entry is not None and entry.adapter is not None
            if entry is not None:
                self._take_out(entry)
            at_door = [item for item in self._door if item[0].lora_int_id == adapter_id]
            self._door = deque(item for item in self._door if item[0].lora_int_id != adapter_id)
        for request, future in at_door:
            fail(future, AdapterNotFound(request.lora_name))
        self._serve_door()
        if entry is not None and is_loaded:
            self._report_dropped(entry, unloaded=True)
        return known is not None or bool(at_door)

    def close(self) -> None:
        """Stop the loader threads; leases that are still awaited fail with EngineDead."""
        with self._lock:
            self._is_closed = True
            waiting = [future for _request, future in self._door]
            self._door.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for entry in [*self._entries.values(), *self._leaving]:  # loads that no thread had begun
                waiting += entry.waiters
                entry.waiters = []
                if entry.adapter is None:
                    self._drop_unread(entry)
        for future in waiting:
            fail(future, EngineDead("the engine has been shut down"))

    def _drop_unread(self, entry: _Entry) -> None:
        """Forget an adapter that was never read, and leave its place to the one that yielded it."""
        if entry.replaces is not None:
            entry.replaces.is_yielding = False
        if entry in self._leaving:
            self._leaving.remove(entry)
        if self._entries.get(entry.request.lora_int_id) is entry:
            del self._entries[entry.request.lora_int_id]
            self._names.pop(entry.request.lora_int_id, None)

    # --- the door: everything that changes who is resident

    def _check_identity(self, request: LoRARequest) -> None:
        at_door = (other for other, future in self._door if not future.cancelled())
        known = self._names.get(request.lora_int_id) or next(
            (other for other in at_door if other.lora_int_id == request.lora_int_id), request
        )
        if (known.lora_name, known.lora_path) != (request.lora_name, request.lora_path):
            raise RequestInvalid(
                f"lora_int_id {request.lora_int_id} already belongs to adapter {known.lora_name!r} at "
                f"{known.lora_path!r}; adapter {request.lora_name!r} at {request.lora_path!r} needs an id of its own",
                param="lora_int_id",
            )

    def _serve_door(self) -> None:
        """Give a lease to everyone at the door who can have one, and start the loads that have room."""
        ready: list[tuple[Future[Lease], _Entry]] = []
        with self._lock:
            still_waiting: deque[tuple[LoRARequest, Future[Lease]]] = deque()
            for request, future in self._door:
                if future.cancelled():
                    continue
                entry = self._entries.get(request.lora_int_id)
                if entry is None and not still_waiting:
                    entry = self._start_load(request)
                if entry is None or entry.is_yielding or (still_waiting and entry is self._making_room):
                    still_waiting.append((request, future))
                    continue
                self._num_overtakes += bool(still_waiting)
                if entry.adapter is None:
                    entry.waiters.append(future)
                else:
                    ready.append((future, self._hold(entry)))
            self._door = still_waiting
            self._watch_first(still_waiting[0][1] if still_waiting else None)
        for future, entry in ready:
            self._hand_out(future, entry)

    def _watch_first(self, first: Future[Lease] | None) -> None:
        """When the first at the door was overtaken too often, choose the adapter that makes room for it."""
        if first is not self._first:
            self._first, self._num_overtakes, self._making_room = first, 0, None
        if first is None or self._num_overtakes < MAX_OVERTAKES:
            return
        candidates = [entry for entry in self._entries.values() if not entry.is_pinned]
        if all(entry is not self._making_room for entry in candidates):
            self._making_room = min(candidates, key=lambda entry: entry.num_leases + len(entry.waiters), default=None)

    def _start_load(self, request: LoRARequest) -> _Entry | None:
        victim = None
        if self._num_places_taken() >= self.capacity:
            victim = next((entry for entry in self._entries.values() if self._is_evictable(entry)), None)
            if victim is None:
                return None
            victim.is_yielding = True
        entry = self._entries[request.lora_int_id] = _Entry(request, replaces=victim)
        self._names[request.lora_int_id] = request
        self._threads.submit(self._load_entry, entry)
        return entry

    def _num_places_taken(self) -> int:
        """Count one for each adapter that is here or on its way; one that yields counts with its successor."""
        return len(self._entries) + len(self._leaving) - sum(entry.is_yielding for entry in self._entries.values())

    @staticmethod
    def _is_evictable(entry: _Entry) -> bool:
        is_idle = entry.adapter is not None and entry.num_leases == 0
        return is_idle and not entry.is_pinned and not entry.is_yielding

    def _evict_replaced(self, entry: _Entry) -> _Entry | None:
        """Take out the adapter whose place this one takes, unless it was removed in the meantime."""
        victim, entry.replaces = entry.replaces, None
        if victim is None or self._entries.get(victim.request.lora_int_id) is not victim:
            return None
        return self._entries.pop(victim.request.lora_int_id)

    def _load_entry(self, entry: _Entry) -> None:
        name = entry.request.lora_name
        try:
            adapter = self._load(entry.request)
            if self._listener is not None:
                self._listener.adapter_loaded(entry.request)
        except LoramuxError as error:
            self._finish_failed(entry, error)
        except Exception as error:  # a reader's bug must fail this adapter's requests, and nothing else
            self._finish_failed(
                entry, AdapterInvalid(name, f"could not be read: {type(error).__name__}: {error}", may_heal=True)
            )
        else:
            self._finish_loaded(entry, adapter)

    def _finish_loaded(self, entry: _Entry, adapter: PackedAdapter) -> None:
        with self._lock:
            entry.adapter = adapter
            evicted = self._evict_replaced(entry)
            self.num_evictions += evicted is not None
            is_removed = entry.is_removed
            waiters, entry.waiters = entry.waiters, []
            for _waiter in waiters:
                self._hold(entry)
        if evicted is not None:
            self._report_dropped(evicted, unloaded=False)
        for future in waiters:
            self._hand_out(future, entry)
        self._serve_door()
        if is_removed:
            self._report_dropped(entry, unloaded=True)

    def _finish_failed(self, entry: _Entry, error: LoramuxError) -> None:
        with self._lock:
            waiters, entry.waiters = entry.waiters, []
            self._drop_unread(entry)
        for future in waiters:
            fail(future, error)
        self._serve_door()

    def _take_out(self, entry: _Entry) -> None:
        del self._entries[entry.request.lora_int_id]
        entry.is_removed = True
        if entry.adapter is None or entry.num_leases:
            self._leaving.append(entry)

    # --- leases

    def _hold(self, entry: _Entry) -> _Entry:
        entry.num_leases += 1
        if not entry.is_removed:
            self._entries.move_to_end(entry.request.lora_int_id)
        return entry

    def _hand_out(self, future: Future[Lease], entry: _Entry) -> None:
        assert entry.adapter is not None
        lease = Lease(entry.adapter, lambda: self._let_go(entry))
        if future.set_running_or_notify_cancel():
            future.set_result(lease)
        else:
            lease.release()

    def _let_go(self, entry: _Entry) -> None:
        with self._lock:
            entry.num_leases -= 1
            if entry.num_leases == 0 and entry in self._leaving and not entry.waiters:
                self._leaving.remove(entry)
        self._serve_door()

    def _report_dropped(self, entry: _Entry, *, unloaded: bool) -> None:
        if self._listener is not None:
            self._listener.adapter_dropped(entry.request, unloaded=unloaded)
