"""Pins: adapters that stay in memory however long nobody asks for them.

A pin goes with the name: the generation that takes over gets it, and the one before gives it up. Unloading ends it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from loramux.adapters.residency import Residency
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import LoramuxError, RequestInvalid
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)


class Memory(Protocol):
    """Where adapters rest: the engine, which alone knows what is pinned."""

    def residency(self, lora_int_id: int) -> Residency | None:
        """Return where an adapter rests; None when it is on disk alone."""
        ...

    async def pin_adapter(self, lora_request: LoRARequest, *, instead_of: int | None = None) -> None:
        """Bring an adapter into host memory and keep it there; raises RequestInvalid when no place would be left."""
        ...

    async def unpin_lora(self, lora_int_id: int) -> bool:
        """Let it be evicted again; False when it was not pinned."""
        ...


class Pins:
    """Pins generations, and hands a pin over to the next one. For one event loop."""

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        self._handovers: set[asyncio.Task[None]] = set()

    async def pin(self, served: ServedAdapter) -> None:
        """Keep it in host memory, and in its slot once it is there; raises RequestInvalid when that cannot be."""
        if self._memory is None:
            raise RequestInvalid("adapters cannot be pinned here", code="adapter_pin_refused")
        await self._memory.pin_adapter(served.lora_request)

    async def unpin(self, served: ServedAdapter) -> None:
        """Let it be evicted again; harmless when it is not pinned."""
        if self._memory is not None:
            await self._memory.unpin_lora(served.id)

    def hand_over(self, before: ServedAdapter, successor: ServedAdapter) -> None:
        """Begin to pin the successor if the one before is pinned; `settle` waits for it."""
        if self._memory is None:
            return
        residency = self._memory.residency(before.id)
        if residency is None or not residency.is_pinned:
            return
        handover = self._hand_over(self._memory, before, successor)
        task = asyncio.create_task(handover, name=f"pin {successor.name}")
        self._handovers.add(task)
        task.add_done_callback(self._handovers.discard)

    async def settle(self) -> None:
        """Wait until every pin is where it belongs."""
        if self._handovers:
            await asyncio.wait(set(self._handovers))

    async def close(self) -> None:
        """Cancel what is under way, and wait for it."""
        handovers = list(self._handovers)
        for task in handovers:
            task.cancel()
        await asyncio.gather(*handovers, return_exceptions=True)

    @staticmethod
    async def _hand_over(memory: Memory, before: ServedAdapter, successor: ServedAdapter) -> None:
        try:
            await memory.pin_adapter(successor.lora_request, instead_of=before.id)
        except LoramuxError as exc:
            logger.warning("adapter is not pinned any more adapter=%s id=%d: %s", successor.name, successor.id, exc)
