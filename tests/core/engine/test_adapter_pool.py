"""The pool alone; what it does for requests is tested with the whole engine, in test_llm_engine.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramux import LLMEngine, LoRARequest
from loramux.adapters.lease import Lease
from loramux.adapters.residency import Residency
from loramux.batch import SlotLoad
from loramux.engine.adapter_pool import AdapterPool
from loramux.errors import ConfigInvalid, RequestInvalid

MakeEngine = Callable[..., LLMEngine]
MakeAdapter = Callable[..., Path]


@pytest.fixture
def sql(make_adapter: MakeAdapter) -> LoRARequest:
    return LoRARequest("sql", 1, str(make_adapter("r8", rank=8, seed=1)))


def fill_slot(pool: AdapterPool, lease: Lease) -> SlotLoad:
    """What the scheduler and a step do for the first sequence of an adapter."""
    grant = pool.slots.acquire(lease.adapter.digest)
    load = SlotLoad(grant.slot, lease.adapter.digest)
    pool.place([load], [None, lease])
    return load


def test_a_slot_is_filled_from_the_lease_of_a_request_in_the_step(make_engine: MakeEngine, sql: LoRARequest) -> None:
    engine = make_engine()
    lease = engine.adapters.acquire(sql).result()

    fill_slot(engine.adapters, lease)

    assert engine.runner.lora is not None
    assert engine.runner.lora.num_placements == 1
    assert engine.adapters.ids() == {1}
    lease.release()


def test_what_a_broken_step_was_to_fill_is_not_taken_for_filled(make_engine: MakeEngine, sql: LoRARequest) -> None:
    pool = make_engine().adapters
    lease = pool.acquire(sql).result()
    load = fill_slot(pool, lease)

    pool.forget([load])
    pool.slots.release(load.digest)

    assert not pool.slots.is_resident(load.digest)
    pool.slots.check_integrity()
    pool.release(lease)


def test_a_removed_adapter_leaves_its_slot_with_its_last_sequence(make_engine: MakeEngine, sql: LoRARequest) -> None:
    pool = make_engine().adapters
    lease = pool.acquire(sql).result()
    load = fill_slot(pool, lease)

    assert pool.remove(1)
    assert pool.slots.is_resident(load.digest)
    pool.slots.release(load.digest)
    pool.release(lease)

    assert pool.slots.digests() == set()
    assert pool.host_cache.num_leases == 0


def test_the_last_unpinned_slot_is_named_when_a_pin_is_refused(make_engine: MakeEngine, sql: LoRARequest) -> None:
    pool = make_engine(max_loras=1, max_cpu_loras=2).adapters
    pool.add(sql)

    with pytest.raises(RequestInvalid, match="adapter id 1 cannot be pinned: one of 1 slots must stay unpinned"):
        pool.pin(1)

    assert pool.slots.digests() == set()


def test_without_enable_lora_no_adapter_is_even_waited_for(make_engine: MakeEngine, sql: LoRARequest) -> None:
    pool = make_engine(enable_lora=False).adapters

    for ask in (pool.acquire, pool.add):
        with pytest.raises(ConfigInvalid, match="adapter 'sql' was asked for, but the engine runs without enable_lora"):
            ask(sql)

    assert pool.ids() == set()


def tiers(pool: AdapterPool) -> dict[int, tuple[str, bool]]:
    return {lora_int_id: (where.tier, where.is_pinned) for lora_int_id, where in pool.residencies().items()}


def test_an_adapter_is_on_disk_then_in_host_memory_then_in_a_slot(make_engine: MakeEngine, sql: LoRARequest) -> None:
    pool = make_engine().adapters
    assert (pool.residency(1), tiers(pool)) == (None, {})

    lease = pool.acquire(sql).result()
    assert pool.residency(1) == Residency("host", is_pinned=False)

    load = fill_slot(pool, lease)
    pool.pin(1)
    assert pool.residency(1) == Residency("slot", is_pinned=True)
    assert tiers(pool) == {1: ("slot", True)}

    pool.slots.release(load.digest)
    pool.release(lease)
    pool.remove(1)
    assert (pool.residency(1), tiers(pool)) == (None, {})


def test_a_pin_is_handed_over_where_there_is_room_for_one_alone(
    make_engine: MakeEngine, make_adapter: MakeAdapter, sql: LoRARequest
) -> None:
    pool = make_engine(max_loras=2, max_cpu_loras=2).adapters
    pool.add(sql)
    pool.add(LoRARequest("sql", 2, str(make_adapter("r3", rank=3, seed=2))))
    assert pool.pin(1)

    assert pool.pin(2, instead_of=1)

    assert tiers(pool) == {1: ("host", False), 2: ("host", True)}


def test_unpinning_gives_up_the_slot_too_and_says_whether_there_was_a_pin(
    make_engine: MakeEngine, sql: LoRARequest
) -> None:
    pool = make_engine().adapters
    pool.add(sql)
    pool.pin(1)

    assert pool.unpin(1)

    assert pool.slots.digests() == set()
    assert not pool.unpin(1)
    assert not pool.unpin(7)
