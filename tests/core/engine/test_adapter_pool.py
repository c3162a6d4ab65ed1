"""The pool alone; what it does for requests is tested with the whole engine, in test_llm_engine.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramux import LLMEngine, LoRARequest
from loramux.adapters.host_cache import Lease
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
