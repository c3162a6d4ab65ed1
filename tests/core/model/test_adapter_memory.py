"""Adapters come to the device while steps run, and no step reads another adapter's numbers, however the two overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux import LLMEngine, LoRARequest
from loramux.adapters.packed import PackedAdapter
from loramux.adapters.weights import LoRATarget
from loramux.model.adapter_memory import NUM_SPARES, AdapterMemory, Event, max_slab_numel
from simulated_streams import SimulatedStreams
from tiny_engines import assert_idle, engine_args, greedy, run

CPU = torch.device("cpu")
NUM_SLOTS = 2


def adapter(number: int, numel: int = 6) -> PackedAdapter:
    return PackedAdapter(f"a{number}", f"digest {number}", torch.full((numel,), float(number)), {}, 1)


def make_memory(streams: SimulatedStreams, num_slots: int = NUM_SLOTS, max_numel: int = 8) -> AdapterMemory:
    return AdapterMemory(streams, num_slots=num_slots, max_numel=max_numel, dtype=torch.float32, device=CPU)


@pytest.fixture
def streams() -> SimulatedStreams:
    return SimulatedStreams()


def test_a_prefetched_adapter_is_ready_when_its_copy_is_done(streams: SimulatedStreams) -> None:
    memory = make_memory(streams)
    memory.prefetch([adapter(1)])
    assert not memory.is_ready("digest 1")

    streams.finish()

    assert memory.is_ready("digest 1")
    assert memory.take(0, adapter(1)).tolist() == [1.0] * 6
    assert memory.num_copies == 1


def test_a_step_waits_for_the_copy_of_an_adapter_that_was_not_prefetched(streams: SimulatedStreams) -> None:
    memory = make_memory(streams)
    placed = memory.take(0, adapter(1))
    seen: list[float] = []
    streams.steps.launch(lambda: seen.extend(placed.tolist()))

    assert not streams.steps.advance()
    assert seen == []

    streams.finish()
    assert seen == [1.0] * 6


def test_a_buffer_is_not_written_before_the_steps_that_read_it_are_done(streams: SimulatedStreams) -> None:
    memory = make_memory(streams, num_slots=1)
    placed = memory.take(0, adapter(1))
    streams.finish()
    seen: list[float] = []
    streams.steps.launch(lambda: seen.extend(placed.tolist()))
    memory.release(0)
    memory.prefetch([adapter(2), adapter(3)])  # the spare buffer, and the one that a step still reads
    while streams.copies.advance():
        pass

    assert placed.tolist() == [1.0] * 6
    streams.finish()
    assert seen == [1.0] * 6
    assert placed.tolist() == [3.0] * 6


def test_with_all_slots_taken_there_is_one_buffer_to_spare(streams: SimulatedStreams) -> None:
    memory = make_memory(streams)
    for slot in range(NUM_SLOTS):
        memory.take(slot, adapter(slot))

    memory.prefetch([adapter(number) for number in range(10, 15)])

    assert memory.num_copies == NUM_SLOTS + NUM_SPARES == 3
    memory.check_integrity()


def test_prefetching_again_copies_nothing_again(streams: SimulatedStreams) -> None:
    memory = make_memory(streams)
    for _ in range(3):
        memory.prefetch([adapter(1), adapter(2)])

    assert memory.num_copies == 2


def test_what_nobody_waits_for_any_more_makes_room(streams: SimulatedStreams) -> None:
    memory = make_memory(streams, num_slots=1)
    memory.prefetch([adapter(1), adapter(2), adapter(3)])
    streams.finish()
    assert not memory.is_ready("digest 3")

    memory.prefetch([adapter(2), adapter(3)])
    streams.finish()

    assert [memory.is_ready(f"digest {number}") for number in (1, 2, 3)] == [False, True, True]
    memory.check_integrity()


def test_an_adapter_whose_turn_it_is_takes_the_buffer_of_one_on_its_way(streams: SimulatedStreams) -> None:
    memory = make_memory(streams, num_slots=1)
    memory.prefetch([adapter(1), adapter(2)])

    placed = memory.take(0, adapter(3))
    streams.finish()

    assert placed.tolist() == [3.0] * 6
    assert memory.is_ready("digest 1")
    assert not memory.is_ready("digest 2")
    memory.check_integrity()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("prefetch"), st.lists(st.integers(1, 6), max_size=4, unique=True)),
        st.tuples(st.just("place"), st.tuples(st.integers(0, NUM_SLOTS - 1), st.integers(1, 6))),
        st.tuples(st.just("clear"), st.integers(0, NUM_SLOTS - 1)),
        st.tuples(st.just("step"), st.none()),
        st.tuples(st.just("copies"), st.integers(1, 3)),
        st.tuples(st.just("steps"), st.integers(1, 3)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS)
def test_no_step_ever_reads_another_adapters_numbers(actions: list[tuple[str, object]]) -> None:
    """The engine places, clears, prefetches and launches; each stream goes on whenever it likes."""
    streams = SimulatedStreams()
    memory = make_memory(streams)
    slots: dict[int, tuple[int, torch.Tensor]] = {}  # the number of the adapter, and its slab
    wrong: list[object] = []

    def read(expected: dict[int, tuple[int, torch.Tensor]]) -> None:
        wrong.extend(
            (slot, slab.tolist())
            for slot, (number, slab) in expected.items()
            if slab.tolist() != [float(number)] * slab.numel()
        )

    for verb, given_ in actions:
        match verb, given_:
            case "prefetch", list(numbers):
                resident = {number for number, _slab in slots.values()}
                memory.prefetch([adapter(number) for number in numbers if number not in resident])
            case "place", (int(slot), int(number)):
                if number not in {number for number, _slab in slots.values()}:
                    if slots.pop(slot, None) is not None:
                        memory.release(slot)
                    slots[slot] = (number, memory.take(slot, adapter(number)))
            case "clear", int(slot):
                if slots.pop(slot, None) is not None:
                    memory.release(slot)
            case "step", _:
                streams.steps.launch(lambda expected=dict(slots): read(expected))
            case "copies", int(count):
                [streams.copies.advance() for _ in range(count)]
            case "steps", int(count):
                [streams.steps.advance() for _ in range(count)]
        memory.check_integrity()
    streams.finish()
    assert wrong == []


def test_the_largest_slab_holds_every_target_with_the_highest_rank() -> None:
    targets = {"a": LoRATarget("linear", 64, 96), "b": LoRATarget("lm_head", 3, 5)}

    assert max_slab_numel(targets, max_rank=8, dtype=torch.float32) == 8 * 64 + 8 * 96 + 64 + 64
    assert max_slab_numel(targets, max_rank=8, dtype=torch.float16) == 8 * 64 + 8 * 96 + 128 + 128


# --- with an engine


@pytest.fixture
def engine(tiny_llama: Path, streams: SimulatedStreams) -> LLMEngine:
    """Its slots lie in an AdapterMemory; steps are computed at once, so they wait for copies by finishing them."""

    def wait(event: Event) -> None:
        streams.steps.launch(lambda: None, after=event)
        streams.finish()

    streams.wait = wait  # type: ignore[method-assign]
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama))
    lora = engine.runner.lora
    assert lora is not None
    numel = max_slab_numel(engine.runner.base.targets, max_rank=64, dtype=torch.float32)
    lora._memory = make_memory(streams, max_numel=numel)
    return engine


def test_others_go_on_without_an_adapter_that_is_on_its_way(
    engine: LLMEngine, streams: SimulatedStreams, make_adapter: Callable[..., Path]
) -> None:
    engine.add_request("base", [5, 6, 7], greedy(8))
    engine.step()
    lora = LoRARequest("r8", 1, str(make_adapter("r8", rank=8, seed=8)))
    engine.add_lora(lora)
    engine.add_request("adapted", [8, 9], greedy(3), lora)
    while engine._awaiting_adapter:
        engine.step()

    for _ in range(3):
        engine.step()
        assert engine.counters()["waiting"] == 1, "it is not computed before its adapter is there"
    while streams.copies.advance():
        pass
    engine.step()

    assert engine.counters()["waiting"] == 0
    run(engine)
    assert_idle(engine)
    engine.shutdown()


def test_a_request_alone_does_not_wait_to_be_asked_again(engine: LLMEngine, make_adapter: Callable[..., Path]) -> None:
    """With nothing else to run, a step is launched at once, behind the copy."""
    lora = LoRARequest("r8", 1, str(make_adapter("r8", rank=8, seed=8)))
    engine.add_lora(lora)
    engine.add_request("adapted", [8, 9], greedy(1), lora)

    outputs = [output for _ in range(2) for output in engine.step()]

    assert [output.finished for output in outputs] == [True]
    engine.shutdown()


def test_adapters_that_take_turns_in_the_slots_give_the_answers_of_a_cpu(
    engine: LLMEngine, tiny_llama: Path, make_adapter: Callable[..., Path], streams: SimulatedStreams
) -> None:
    loras = [LoRARequest(f"r{rank}", rank, str(make_adapter(f"r{rank}", rank=rank, seed=rank))) for rank in (3, 8, 17)]

    def answers(engine: LLMEngine) -> list[list[int]]:
        for index in range(12):
            owner = [None, *loras][index % 4]
            engine.add_request(str(index), [5 + index, 6, 7], greedy(3 + index % 5), owner)
        last = {}
        while engine.has_unfinished_requests():
            last |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
            streams.copies.advance()
        return [last[str(index)] for index in range(12)]

    plain = LLMEngine.from_engine_args(engine_args(tiny_llama))
    expected = answers(plain)
    plain.shutdown()

    assert answers(engine) == expected
    assert engine.runner.lora is not None
    assert engine.runner.lora._memory is not None
    engine.runner.lora._memory.check_integrity()
    assert_idle(engine)
    engine.shutdown()
