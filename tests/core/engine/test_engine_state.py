from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramux import LLMEngine, LoRARequest, SamplingParams
from loramux.metrics.state import TierState
from tiny_engines import engine_args, run

LONG = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture
def engine(tiny_llama: Path) -> Iterator[LLMEngine]:
    engine = LLMEngine(engine_args(tiny_llama, max_loras=1, max_cpu_loras=2))
    yield engine
    engine.shutdown()


@pytest.fixture
def adapters(make_adapter: Callable[..., Path]) -> list[LoRARequest]:
    return [
        LoRARequest(name, number, str(make_adapter(f"state/{name}", seed=number)))
        for number, name in enumerate(("left", "right", "third"), start=1)
    ]


def test_an_adapter_without_a_slot_waits_while_the_other_one_runs(
    engine: LLMEngine, adapters: list[LoRARequest]
) -> None:
    for adapter in adapters[:2]:
        engine.add_lora(adapter)
        engine.add_request(adapter.lora_name, [1, 2, 3], LONG, adapter)
    engine.add_request("base", [1, 2, 3], LONG)
    engine.step()

    state = engine.state()

    assert (state.num_running, state.num_waiting) == (2, 1)
    assert (state.running_adapters, state.waiting_adapters) == (("left",), ("right",))
    assert (state.max_loras, state.num_slots_in_use, state.num_leases) == (1, 1, 2)


def test_an_adapter_both_runs_and_waits_when_its_requests_do(engine: LLMEngine, adapters: list[LoRARequest]) -> None:
    engine.add_lora(adapters[0])
    for number in range(9):  # one more than fit into a batch
        engine.add_request(str(number), [1, 2, 3], LONG, adapters[0])
    engine.step()

    state = engine.state()

    assert (state.num_running, state.num_waiting) == (8, 1)
    assert state.running_adapters == state.waiting_adapters == ("left",)


def test_a_request_whose_adapter_is_being_read_waits(engine: LLMEngine, adapters: list[LoRARequest]) -> None:
    engine.add_request("early", [1, 2, 3], LONG, adapters[0])

    state = engine.state()

    assert (state.num_running, state.num_waiting, state.waiting_adapters) == (0, 1, ("left",))


def test_memory_and_slots_tell_what_they_hold_and_what_they_have_evicted(
    engine: LLMEngine, adapters: list[LoRARequest]
) -> None:
    for adapter in adapters:
        engine.add_lora(adapter)
        engine.add_request(adapter.lora_name, [1, 2, 3], LONG, adapter)
        run(engine)

    state = engine.state()

    nbytes = engine.adapters.host_cache.contents()[0].nbytes
    assert state.host == TierState(num_adapters=2, nbytes=2 * nbytes, num_evictions=1)
    assert state.slots == TierState(num_adapters=1, nbytes=nbytes, num_evictions=2)


def test_steps_tokens_and_prefix_hits_add_up(engine: LLMEngine) -> None:
    prompt = list(range(1, 10))  # two full blocks of four, and one token more
    for number in range(2):
        engine.add_request(str(number), prompt, SamplingParams(max_tokens=3, ignore_eos=True))
        run(engine)

    state = engine.state()

    assert state.num_steps == 6
    assert state.num_prefix_query_tokens == 18
    assert state.num_prefix_hit_tokens == 8
    assert state.num_computed_tokens == (9 + 2) + (1 + 2)
    assert state.num_preemptions == 0


def test_an_idle_engine_holds_nothing(engine: LLMEngine) -> None:
    state = engine.state()

    assert (state.num_running, state.num_waiting, state.kv_usage) == (0, 0, 0.0)
