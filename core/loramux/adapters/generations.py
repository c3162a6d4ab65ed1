"""Generations: which content answers to which name now, who still uses it, and what has been replaced.

A generation is current or retired. Requests begin with the current one; a retired one stays until the last request that
uses it ends, and is then unloaded. For one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from loramux.adapters.served_adapter import ServedAdapter

MAX_CURRENT = 16_384
"""Beyond that, an idle one that its resolver can find again is forgotten for each new one."""


class GenerationUse(NamedTuple):
    """How a generation is used: by how many requests so far and right now, and when (Unix seconds) one last began.

    One that is not current has been replaced or unloaded, and only ends what it had begun. A tuple, since thousands are
    made for one look: a frozen dataclass takes four times as long.
    """

    served: ServedAdapter
    is_current: bool
    is_evicted: bool
    num_hits: int
    num_active: int
    last_used: float | None


@dataclass(slots=True, eq=False)
class _Record:
    served: ServedAdapter
    num_uses: int = 0
    num_hits: int = 0
    last_used: float | None = None
    is_evicted: bool = False  # its weights have left host memory
    check_at: float | None = None  # when its source is to be asked again; None = never


class Generations:
    """`unload` frees what is given up; it is called once for each generation, when nobody uses it any more.

    `succeed` hears, before that, which one takes over from which.
    """

    def __init__(
        self,
        unload: Callable[[ServedAdapter], Awaitable[object]],
        succeed: Callable[[ServedAdapter, ServedAdapter], None] | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._unload = unload
        self._succeed = succeed
        self._now = now
        self._current: dict[str, _Record] = {}  # in load order
        self._by_id: dict[int, _Record] = {}  # the current ones, and the retired ones that are in use
        self._removals: set[asyncio.Task[object]] = set()

    # --- questions

    def current(self, name: str) -> ServedAdapter | None:
        """Return what new requests for a name get."""
        record = self._current.get(name)
        return None if record is None else record.served

    def is_current(self, served: ServedAdapter) -> bool:
        """Whether new requests get this very generation."""
        return self.current(served.name) is served

    def current_by_id(self, lora_int_id: int) -> ServedAdapter | None:
        """Return the current generation of this id."""
        record = self._by_id.get(lora_int_id)
        return record.served if record is not None and self.is_current(record.served) else None

    def all_current(self) -> list[ServedAdapter]:
        """Return all current ones, in load order."""
        return [record.served for record in self._current.values()]

    def uses(self) -> list[GenerationUse]:
        """Return all current ones and those that only end what they had begun, in load order."""
        return [
            GenerationUse(
                record.served,
                is_current=self._current.get(record.served.name) is record,
                is_evicted=record.is_evicted,
                num_hits=record.num_hits,
                num_active=record.num_uses,
                last_used=record.last_used,
            )
            for record in self._by_id.values()
        ]

    def is_evicted(self, served: ServedAdapter) -> bool:
        """Whether a current one must be read again before it is used."""
        return self._by_id[served.id].is_evicted

    def is_due(self, served: ServedAdapter, now: float) -> bool:
        """Whether it is time to ask the source of a current one again."""
        check_at = self._by_id[served.id].check_at
        return check_at is not None and now >= check_at

    # --- changes

    def install(self, served: ServedAdapter, *, check_at: float | None) -> None:
        """Give new requests this generation; the one before is retired."""
        if (before := self._current.get(served.name)) is not None:
            if self._succeed is not None:
                self._succeed(before.served, served)
            self.retire(before.served)
        self._current[served.name] = self._by_id[served.id] = _Record(served, check_at=check_at)
        if len(self._current) > MAX_CURRENT:
            self._forget_an_idle_one()

    def keep(self, served: ServedAdapter, updated: ServedAdapter, *, check_at: float | None) -> None:
        """Go on with a current generation of which more is known now, such as a newer name of the same content."""
        assert updated.id == served.id
        if self.is_current(served):
            record = self._by_id[served.id]
            record.served, record.check_at = updated, check_at

    def set_evicted(self, served: ServedAdapter, *, is_evicted: bool) -> None:
        """Take note that a current one's weights have left host memory, or are about to be there again."""
        self._by_id[served.id].is_evicted = is_evicted

    def retire(self, served: ServedAdapter) -> asyncio.Task[object] | None:
        """Give it to no new request; return the task that unloads it, or None while requests use it."""
        record = self._current.pop(served.name)
        if record.num_uses:
            return None
        del self._by_id[served.id]
        return self.unload(served)

    def unload(self, served: ServedAdapter) -> asyncio.Task[object]:
        """Unload a generation that nobody uses, or that was never installed."""
        removal = asyncio.ensure_future(self._unload(served))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    def begin_use(self, served: ServedAdapter) -> None:
        """Count one more request of a current generation."""
        record = self._by_id[served.id]
        record.num_uses += 1
        record.num_hits += 1
        record.last_used = self._now()

    def end_use(self, served: ServedAdapter) -> None:
        """Count one less; the last one lets a retired generation go."""
        record = self._by_id[served.id]
        record.num_uses -= 1
        if record.num_uses == 0 and self._current.get(served.name) is not record:
            del self._by_id[served.id]
            self.unload(record.served)

    async def close(self) -> None:
        """Wait for what is being unloaded."""
        await asyncio.gather(*self._removals, return_exceptions=True)

    def check_integrity(self) -> None:
        """Raise AssertionError when a generation is lost, or kept for nobody."""
        for name, record in self._current.items():
            assert record.served.name == name
            assert self._by_id[record.served.id] is record
        for lora_int_id, record in self._by_id.items():
            assert record.served.id == lora_int_id
            assert record.num_uses > 0 or self._current.get(record.served.name) is record

    def _forget_an_idle_one(self) -> None:
        for record in self._current.values():
            if record.is_evicted and record.served.origin == "resolver" and not record.num_uses:
                self.retire(record.served)
                return
