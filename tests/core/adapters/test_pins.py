"""A pin stays with the name, whatever becomes of its generations."""

from __future__ import annotations

import asyncio

import pytest

from loramux.adapters.pins import Pins
from loramux.adapters.registry import AdapterRegistry, Patience
from loramux.adapters.residency import Residency
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.errors import AdapterLoading, AdapterNotFound, EngineDead, RequestInvalid
from loramux.lora.request import LoRARequest


class Memory:
    """Loads at once; pins when the gate is open, unless it is broken."""

    def __init__(self) -> None:
        self.loaded: set[int] = set()
        self.pinned: set[int] = set()
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_begun = asyncio.Event()

    async def load(self, request: LoRARequest) -> LoadedAdapter:
        self.loaded.add(request.lora_int_id)
        return LoadedAdapter(f"content of {request.lora_path}", 1, 1)

    async def unload(self, lora_int_id: int) -> None:
        self.loaded.discard(lora_int_id)
        self.pinned.discard(lora_int_id)

    def residency(self, lora_int_id: int) -> Residency | None:
        return Residency("host", lora_int_id in self.pinned) if lora_int_id in self.loaded else None

    async def pin_adapter(self, lora_request: LoRARequest, *, instead_of: int | None = None) -> None:
        self.has_begun.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.pinned.discard(instead_of or 0)
        self.pinned.add(lora_request.lora_int_id)

    async def unpin_lora(self, lora_int_id: int) -> bool:
        self.pinned.discard(lora_int_id)
        return True


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
async def registry(memory: Memory):
    chain = ResolverChain([])
    registry = AdapterRegistry(
        ["base"], chain, memory.load, memory.unload, memory=memory, patience=Patience(lora_wait_seconds=0.05)
    )
    yield registry
    memory.gate.set()
    await registry.close()
    await chain.close()


async def test_a_replaced_generation_hands_its_pin_over(registry: AdapterRegistry, memory: Memory) -> None:
    await registry.add("sql", "/v1")
    await registry.pin("sql")

    await registry.add("sql", "/v2", replaces=True)

    assert memory.pinned == {2}


async def test_what_was_not_pinned_hands_nothing_over(registry: AdapterRegistry, memory: Memory) -> None:
    await registry.add("sql", "/v1")
    await registry.add("sql", "/v2", replaces=True)

    assert not memory.has_begun.is_set()


async def test_a_replacement_while_it_is_pinned_is_pinned_instead(registry: AdapterRegistry, memory: Memory) -> None:
    await registry.add("sql", "/v1")
    memory.gate.clear()
    pinning = asyncio.create_task(registry.pin("sql"))
    await memory.has_begun.wait()

    await registry.add("sql", "/v2", replaces=True)
    memory.gate.set()

    assert (await pinning).id == 2
    assert memory.pinned == {2}


async def test_a_replacement_serves_even_if_it_cannot_be_pinned(
    registry: AdapterRegistry, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.add("sql", "/v1")
    await registry.pin("sql")
    memory.failure = EngineDead("the engine has stopped")

    served = await registry.add("sql", "/v2", replaces=True)

    assert await registry.lookup("sql") is served
    assert "adapter is not pinned any more adapter=sql id=2" in caplog.text


async def test_a_pin_that_takes_long_is_told_to_be_under_way(registry: AdapterRegistry, memory: Memory) -> None:
    await registry.add("sql", "/v1")
    memory.gate.clear()

    with pytest.raises(AdapterLoading):
        await registry.pin("sql")


async def test_only_what_is_served_can_be_pinned(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound):
        await registry.pin("sql")
    with pytest.raises(AdapterNotFound):
        await registry.unpin(lora_int_id=7)


async def test_without_a_memory_to_ask_nothing_is_pinned() -> None:
    registry = AdapterRegistry(["base"], ResolverChain([]), Memory().load, Memory().unload)
    served = await registry.add("sql", "/v1")

    with pytest.raises(RequestInvalid, match="adapters cannot be pinned here"):
        await Pins(None).pin(served)
    await registry.unpin("sql")
    await registry.add("sql", "/v2", replaces=True)
    await registry.close()
