"""AdapterPool: the adapters of one engine: read and checked, kept in host memory, placed in the device's slots.

An adapter's content keeps its slot as long as some id in host memory, or some sequence, has that content.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from loramux.adapters.host_cache import HostCache
from loramux.adapters.lease import Lease
from loramux.adapters.residency import Residency, Tier
from loramux.adapters.slots import SlotTable
from loramux.batch import SlotLoad
from loramux.config import EngineArgs
from loramux.engine.adapter_loader import AdapterLoader, LoadListener
from loramux.errors import ConfigInvalid, EngineOverloaded, RequestInvalid
from loramux.lora.request import LoRARequest
from loramux.model.runner import ModelRunner
from loramux.model.threads import compute_beside

EventListener = Callable[[str, LoRARequest], None]


class AdapterPool:
    """Owns host memory and the slot table.

    `acquire`, `ids`, `residency` and `residencies` may be called from any thread, the rest by the engine's.

    The scheduler says which slots are used; the pool fills and empties them.
    """

    def __init__(
        self,
        runner: ModelRunner,
        args: EngineArgs,
        *,
        on_event: EventListener | None = None,
        on_load: LoadListener | None = None,
    ) -> None:
        self._runner = runner
        self._is_enabled = args.enable_lora
        loader = AdapterLoader(runner, args, on_event=on_event, on_load=on_load)
        self._on_load = on_load
        self.host_cache = HostCache(
            capacity=args.host_loras, load=loader.load, listener=loader, begin_thread=compute_beside
        )
        self.slots = SlotTable(args.max_loras)

    def acquire(self, lora_request: LoRARequest) -> Future[Lease]:
        """Return a future lease on an adapter, waiting for room; it fails with AdapterInvalid.

        Raises ConfigInvalid when this engine serves no adapters, RequestInvalid when the id is another adapter's.
        """
        self._check_enabled(lora_request)
        return self.host_cache.acquire(lora_request)

    def release(self, lease: Lease) -> None:
        """Let go of an adapter, and of its slot if it was unloaded in the meantime."""
        self._retire_unless_loaded(lease.adapter.digest)
        lease.release()

    def add(self, lora_request: LoRARequest) -> bool:
        """Bring an adapter into host memory; False when it was there. Raises EngineOverloaded when there is no room."""
        self._check_enabled(lora_request)
        if not self.host_cache.has_room(lora_request):
            raise EngineOverloaded(
                f"adapter {lora_request.lora_name!r} cannot be loaded now: all {self.host_cache.capacity} adapters in "
                "host memory are in use (max_cpu_loras)"
            )
        is_new = lora_request.lora_int_id not in self.ids()
        self.host_cache.acquire(lora_request).result().release()
        return is_new

    def remove(self, lora_int_id: int) -> bool:
        """Unload an adapter; requests that use it finish first. False when the id is unknown."""
        removed = self.host_cache.remove(lora_int_id)
        for digest in self.slots.digests():
            self._retire_unless_loaded(digest)
        return removed

    def ids(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        return self.host_cache.ids()

    def residency(self, lora_int_id: int) -> Residency | None:
        """Return where an adapter rests; None when it is on disk alone."""
        adapter = self.host_cache.adapter(lora_int_id)
        if adapter is None:
            return None
        return Residency(self._tier(adapter.digest), self.host_cache.is_pinned(lora_int_id))

    def residencies(self) -> dict[int, Residency]:
        """Return where each adapter in host memory rests, by id."""
        return {
            lora_int_id: Residency(self._tier(adapter.digest), is_pinned)
            for lora_int_id, adapter, is_pinned in self.host_cache.residents()
        }

    def pin(self, lora_int_id: int, *, instead_of: int | None = None) -> bool:
        """Keep a loaded adapter in host memory, and in its slot once it is there. False when it is not loaded.

        `instead_of` gives up its pin first. Raises RequestInvalid when pinning it would leave no slot, or no place in
        host memory, for the others.
        """
        if instead_of is not None:
            self.unpin(instead_of)
        adapter = self.host_cache.adapter(lora_int_id)
        if adapter is None:
            return False
        if not self.slots.pin(adapter.digest):
            raise RequestInvalid(
                f"adapter id {lora_int_id} cannot be pinned: one of {self.slots.num_slots} slots must stay unpinned",
                param="lora_int_id",
                code="adapter_pin_refused",
            )
        try:
            return self.host_cache.pin(lora_int_id)
        finally:
            if not self.host_cache.has_content(adapter.digest, pinned=True):
                self.slots.unpin(adapter.digest)

    def unpin(self, lora_int_id: int) -> bool:
        """Undo `pin`; False when it was not pinned."""
        adapter = self.host_cache.adapter(lora_int_id)
        was_pinned = self.host_cache.unpin(lora_int_id)
        if adapter is not None and not self.host_cache.has_content(adapter.digest, pinned=True):
            self.slots.unpin(adapter.digest)
        return was_pinned

    def place(self, loads: Sequence[SlotLoad], leases: Iterable[Lease | None]) -> None:
        """Fill the slots that a step needs, from the leases of the requests in it."""
        if not loads:
            return
        adapters = {lease.adapter.digest: lease.adapter for lease in leases if lease is not None}
        for load in loads:
            started = time.perf_counter()
            self._runner.place_adapter(load.slot, adapters[load.digest])
            if self._on_load is not None:
                self._on_load("host_to_slot", time.perf_counter() - started)

    def prefetch(self, leases: Iterable[Lease | None]) -> None:
        """Bring the adapters of waiting requests closer to their slots, in this order, while others run."""
        if self._is_enabled:
            self._runner.prefetch_adapters([lease.adapter for lease in leases if lease is not None])

    def is_ready(self, digest: str) -> bool:
        """Whether an adapter can be put into a slot without holding up a step."""
        return self._runner.is_adapter_ready(digest)

    def forget(self, loads: Iterable[SlotLoad]) -> None:
        """Take no slot for filled that a broken step was to fill."""
        for load in loads:
            self.slots.retire(load.digest)

    def clear_vacated(self) -> None:
        """Free the memory of the slots that unloaded adapters have left."""
        for slot in self.slots.take_vacated():
            self._runner.clear_slot(slot)

    def close(self) -> None:
        """Stop the loader threads; leases that are still awaited fail with EngineDead."""
        self.host_cache.close()

    def _tier(self, digest: str) -> Tier:
        return "slot" if self.slots.is_resident(digest) else "host"

    def _retire_unless_loaded(self, digest: str) -> None:
        """Free the slot of unloaded content, now or after its last sequence; another id may have the same content."""
        if not self.host_cache.has_content(digest, pinned=True):
            self.slots.unpin(digest)
        if not self.host_cache.has_content(digest):
            self.slots.retire(digest)
            self.clear_vacated()

    def _check_enabled(self, lora_request: LoRARequest) -> None:
        if not self._is_enabled:
            raise ConfigInvalid(
                f"adapter {lora_request.lora_name!r} was asked for, but the engine runs without enable_lora=True"
            )
