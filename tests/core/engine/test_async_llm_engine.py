"""Many tasks share one engine; whoever leaves, in whatever way, leaves nothing behind, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from loramux import AsyncLLMEngine, LoRARequest, RequestOutput, SamplingParams
from loramux.adapters.residency import Residency
from loramux.batch import ScheduledBatch
from loramux.errors import AdapterInvalid, ContextLengthExceeded, EngineDead, RequestInvalid
from tiny_engines import Reference, assert_idle, engine_args, greedy, kv_bytes

MakeAdapter = Callable[..., Path]
PROMPT = [17, 200, 45, 8, 99, 310, 61, 7, 150, 33, 42]
LONG = greedy(200)
PATIENCE_SECONDS = 30


@pytest.fixture
def make_engine(tiny_llama: Path) -> Iterator[Callable[..., AsyncLLMEngine]]:
    engines: list[AsyncLLMEngine] = []

    def make(**changes: object) -> AsyncLLMEngine:
        engines.append(AsyncLLMEngine.from_engine_args(engine_args(tiny_llama, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture
def engine(make_engine: Callable[..., AsyncLLMEngine]) -> AsyncLLMEngine:
    return make_engine()


@pytest.fixture
def adapter(make_adapter: MakeAdapter) -> LoRARequest:
    return LoRARequest("r8", 1, str(make_adapter("r8", rank=8, seed=1)))


async def last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [output async for output in outputs][-1]


async def settle(engine: AsyncLLMEngine) -> None:
    """Let the engine do everything that was asked of it before; a loader's thread may still hand a lease back."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await last(engine.generate([1], greedy(1), "settle"))
        assert (engine.counters()["running"], engine.counters()["waiting"]) == (0, 0)
        while engine.counters()["leases"]:
            await last(engine.generate([1], greedy(1), "settle"))
    assert_idle(engine._engine)
    assert engine._streams == {}


async def begun(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    """Wait for the first output."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await anext(outputs)


async def test_tasks_share_the_engine_and_each_gets_its_own_answer(
    engine: AsyncLLMEngine, adapter: LoRARequest, reference: Reference
) -> None:
    prompts = [[*PROMPT[index:], index + 1] for index in range(6)]
    answers = await asyncio.gather(
        *(
            last(engine.generate(prompt, greedy(), str(index), adapter if index % 2 else None))
            for index, prompt in enumerate(prompts)
        )
    )

    for index, (prompt, output) in enumerate(zip(prompts, answers, strict=True)):
        folder = Path(adapter.lora_path) if index % 2 else None
        assert output.finished
        assert output.outputs[0].token_ids == reference.greedy(prompt, 6, folder)
    await settle(engine)


async def test_outputs_are_cumulative_and_the_last_one_is_finished(engine: AsyncLLMEngine) -> None:
    seen = [output async for output in engine.generate(PROMPT, greedy(20), "x")]

    final = seen[-1].outputs[0].token_ids
    assert len(final) == 20
    assert all(final[: len(output.outputs[0].token_ids)] == output.outputs[0].token_ids for output in seen)
    assert [output.finished for output in seen] == [False] * (len(seen) - 1) + [True]


async def test_leaving_the_iterator_frees_everything(engine: AsyncLLMEngine, adapter: LoRARequest) -> None:
    outputs = engine.generate(PROMPT, LONG, "x", adapter)
    await begun(outputs)
    assert engine.counters()["leases"] == 1

    await outputs.aclose()  # type: ignore[attr-defined]

    await settle(engine)


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3, 5, 50])
async def test_a_cancelled_task_frees_everything_wherever_it_was(
    engine: AsyncLLMEngine, adapter: LoRARequest, num_turns: int
) -> None:
    task = asyncio.create_task(last(engine.generate(PROMPT, LONG, "x", adapter)))
    for _ in range(num_turns):
        await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await settle(engine)


async def test_an_id_can_be_used_again_after_leaving(engine: AsyncLLMEngine, reference: Reference) -> None:
    outputs = engine.generate(PROMPT, LONG, "same")
    await begun(outputs)
    await outputs.aclose()  # type: ignore[attr-defined]

    output = await last(engine.generate(PROMPT, greedy(), "same"))

    assert output.outputs[0].token_ids == reference.greedy(PROMPT, 6)


async def test_a_refused_second_request_does_not_end_the_first_of_its_id(engine: AsyncLLMEngine) -> None:
    first = engine.generate(PROMPT, greedy(60), "same")
    await begun(first)

    with pytest.raises(RequestInvalid, match="already in use"):
        await last(engine.generate(PROMPT, greedy(), "same"))

    assert len((await last(first)).outputs[0].token_ids) == 60


async def test_errors_are_raised_to_the_reader(engine: AsyncLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(ContextLengthExceeded, match="maximum context length"):
        await last(engine.generate([1] * 1000, greedy(), "long"))
    with pytest.raises(AdapterInvalid, match="adapter 'nowhere'"):
        await last(engine.generate(PROMPT, greedy(), "x", LoRARequest("nowhere", 7, str(tmp_path / "nowhere"))))
    with pytest.raises(AdapterInvalid, match="adapter 'nowhere'"):
        await engine.add_lora(LoRARequest("nowhere", 7, str(tmp_path / "nowhere")))
    await settle(engine)


async def test_abort_ends_the_reader_with_a_last_output(engine: AsyncLLMEngine) -> None:
    outputs = engine.generate(PROMPT, LONG, "x")
    await begun(outputs)

    await engine.abort("x")

    final = await last(outputs)
    assert final.outputs[0].finish_reason == "abort"
    assert final.finished
    await engine.abort("x")
    await settle(engine)


async def test_add_lora_loads_once_for_all_who_ask(engine: AsyncLLMEngine, adapter: LoRARequest) -> None:
    loads: list[LoRARequest] = []
    load = engine._engine.adapters.host_cache._load
    all_have_asked = threading.Event()
    engine._engine.adapters.host_cache._load = lambda request: (
        loads.append(request),
        all_have_asked.wait(PATIENCE_SECONDS),
        load(request),
    )[2]

    asking = [asyncio.ensure_future(engine.add_lora(adapter)) for _ in range(5)]
    await asyncio.sleep(0)
    all_have_asked.set()
    news = await asyncio.gather(*asking)

    assert all(news)
    assert not await engine.add_lora(adapter)
    assert len(loads) == 1
    assert await engine.list_loras() == {1}


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
async def test_a_cancelled_add_lora_holds_nothing(engine: AsyncLLMEngine, adapter: LoRARequest, num_turns: int) -> None:
    task = asyncio.create_task(engine.add_lora(adapter))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    await settle(engine)


async def test_a_lease_that_comes_while_add_lora_is_cancelled_is_released(
    engine: AsyncLLMEngine, adapter: LoRARequest
) -> None:
    """The lease is there, the loop has not heard of it yet, and then the task is cancelled."""
    await engine.add_lora(adapter)
    task = asyncio.create_task(engine.add_lora(adapter))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert engine.counters()["leases"] == 0


async def test_remove_lora_lets_its_requests_finish(
    engine: AsyncLLMEngine, adapter: LoRARequest, reference: Reference
) -> None:
    outputs = engine.generate(PROMPT, greedy(30), "x", adapter)
    await begun(outputs)

    assert await engine.remove_lora(1)

    expected = reference.greedy(PROMPT, 30, Path(adapter.lora_path))
    assert (await last(outputs)).outputs[0].token_ids == expected
    await settle(engine)
    assert engine._engine.slots.digests() == set()
    assert not await engine.remove_lora(1)


async def test_pin_lora(engine: AsyncLLMEngine, adapter: LoRARequest) -> None:
    assert not await engine.pin_lora(1)
    await engine.add_lora(adapter)
    assert await engine.pin_lora(1)


async def test_a_request_brings_its_adapter_from_the_disk_into_a_slot(
    engine: AsyncLLMEngine, adapter: LoRARequest
) -> None:
    tiers = [engine.tier_of(1)]
    await engine.add_lora(adapter)
    tiers.append(engine.tier_of(1))
    await last(engine.generate(PROMPT, greedy(1), "a", adapter))
    tiers.append(engine.tier_of(1))

    assert tiers == [None, "host", "slot"]
    assert engine.residencies() == {1: engine.residency(1)}


async def test_an_evicted_adapter_is_read_again_to_be_pinned_and_then_stays(
    make_engine: Callable[..., AsyncLLMEngine], make_adapter: MakeAdapter, adapter: LoRARequest
) -> None:
    engine = make_engine(max_loras=2, max_cpu_loras=2)
    others = [LoRARequest(f"r{rank}", rank, str(make_adapter(f"r{rank}", rank=rank, seed=2))) for rank in (3, 4)]
    await engine.add_lora(adapter)
    for other in others:
        await engine.add_lora(other)
    assert engine.residency(1) is None

    await engine.pin_adapter(adapter)
    for other in others:
        await engine.add_lora(other)

    assert engine.residency(1) == Residency("host", is_pinned=True)
    with pytest.raises(RequestInvalid) as refused:
        await engine.pin_adapter(others[1])
    assert refused.value.code == "adapter_pin_refused"
    assert await engine.unpin_lora(1)
    assert not await engine.unpin_lora(1)
    await settle(engine)


async def test_a_slow_reader_finds_the_latest_output(engine: AsyncLLMEngine) -> None:
    outputs = engine.generate(PROMPT, greedy(30), "slow")
    await begun(outputs)
    await last(engine.generate(PROMPT, greedy(60), "other"))

    seen = [output async for output in outputs]

    assert len(seen) < 29
    assert len(seen[-1].outputs[0].token_ids) == 30


# --- the end


async def test_shutdown_is_heard_by_every_reader_and_may_be_called_again(
    engine: AsyncLLMEngine, adapter: LoRARequest
) -> None:
    readers = [engine.generate(PROMPT, LONG, str(index), adapter if index else None) for index in range(2)]
    for reader in readers:
        await begun(reader)
    assert engine.is_running

    await asyncio.to_thread(engine.shutdown)
    engine.shutdown()

    for reader in readers:
        with pytest.raises(EngineDead, match="shut down"):
            await last(reader)
    assert not engine.is_running
    assert_idle(engine._engine)
    with pytest.raises(EngineDead):
        await last(engine.generate(PROMPT, greedy(), "late"))
    with pytest.raises(EngineDead):
        await engine.add_lora(adapter)
    with pytest.raises(EngineDead):
        await engine.check_health()


async def test_the_engines_death_reaches_every_reader(engine: AsyncLLMEngine) -> None:
    readers = [engine.generate(PROMPT, LONG, str(index)) for index in range(3)]
    for reader in readers:
        await begun(reader)
    engine._engine.scheduler.schedule = _die  # type: ignore[method-assign]

    for reader in readers:
        with pytest.raises(EngineDead, match="the engine stopped: no way on"):
            await last(reader)
    await asyncio.to_thread(engine._thread.join)
    with pytest.raises(EngineDead, match="no way on"):
        await engine.check_health()
    assert not engine.is_running


async def test_a_step_that_does_not_end_shows_and_an_idle_engine_is_in_none(engine: AsyncLLMEngine) -> None:
    is_stuck, may_go_on = threading.Event(), threading.Event()
    schedule = engine._engine.scheduler.schedule

    def get_stuck() -> ScheduledBatch | None:
        is_stuck.set()
        may_go_on.wait(PATIENCE_SECONDS)
        return schedule()

    assert engine.seconds_in_step == 0
    engine._engine.scheduler.schedule = get_stuck  # type: ignore[method-assign]
    reader = asyncio.create_task(last(engine.generate(PROMPT, greedy(2), "stuck")))
    assert await asyncio.to_thread(is_stuck.wait, PATIENCE_SECONDS)

    before = engine.seconds_in_step
    assert engine.seconds_in_step > before > 0
    assert engine.state().num_waiting == 1  # it can be looked at all the same

    may_go_on.set()
    await reader
    await asyncio.to_thread(engine.shutdown)
    assert engine.seconds_in_step == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_thread_is_gone_does_not_run_and_its_readers_hear_of_it(engine: AsyncLLMEngine) -> None:
    def leave() -> None:
        raise SystemExit  # no Exception: nobody hears of it

    reader = engine.generate(PROMPT, LONG, "reader")
    await begun(reader)

    engine._post(leave)

    with pytest.raises(EngineDead):
        await last(reader)
    await asyncio.to_thread(engine._thread.join)
    assert not engine.is_running


def _die() -> None:
    raise AssertionError("no way on")


async def test_a_call_that_comes_after_the_inbox_was_emptied_for_the_last_time_is_answered(
    engine: AsyncLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had seen the engine alive a moment before."""
    await asyncio.to_thread(engine.shutdown)
    monkeypatch.setattr(engine, "_check_alive", lambda: None)

    with pytest.raises(EngineDead):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await engine.remove_lora(1)


async def test_shutdown_answers_who_waits_for_an_adapter(
    make_engine: Callable[..., AsyncLLMEngine], make_adapter: MakeAdapter, adapter: LoRARequest
) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    running = engine.generate(PROMPT, LONG, "running", adapter)
    await begun(running)
    other = LoRARequest("r3", 2, str(make_adapter("r3", rank=3, seed=2)))
    adding = asyncio.create_task(engine.add_lora(other))
    waiting = asyncio.create_task(last(engine.generate(PROMPT, greedy(), "waiting", other)))
    await asyncio.sleep(0)
    await engine.abort("nobody")  # by now both were taken out of the inbox
    assert engine.counters()["waiting"] == 1

    await asyncio.to_thread(engine.shutdown)

    for task in (adding, waiting):
        with pytest.raises(EngineDead):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await task
    assert engine.counters()["leases"] == 0


async def test_counters_can_be_read_while_the_engine_works(
    make_engine: Callable[..., AsyncLLMEngine], make_adapter: MakeAdapter
) -> None:
    """Other threads read what the engine thread changes: a number may be old, but there is one."""
    engine = make_engine(max_loras=1, max_cpu_loras=3, kv_cache_memory_bytes=kv_bytes(64))
    adapters = [
        LoRARequest(f"turn{index}", 1 + index, str(make_adapter(f"turn{index}", rank=2, seed=10 + index)))
        for index in range(3)
    ]
    is_over = threading.Event()
    faults: list[BaseException] = []

    def watch() -> None:
        try:
            while not is_over.is_set():
                engine.counters()
                engine.state()
        except BaseException as fault:
            faults.append(fault)

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    await asyncio.gather(
        *(last(engine.generate(PROMPT, params, str(index), adapters[index % 3])) for index in range(12))
    )
    is_over.set()
    await asyncio.to_thread(watcher.join)

    assert faults == []
    await settle(engine)


async def test_while_an_adapter_is_read_the_other_streams_go_on(
    engine: AsyncLLMEngine, adapter: LoRARequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = engine._engine.adapters.host_cache
    read, is_reading, may_go_on = cache._load, threading.Event(), threading.Event()

    def read_slowly(request: LoRARequest) -> object:
        is_reading.set()
        assert may_go_on.wait(PATIENCE_SECONDS)
        return read(request)

    monkeypatch.setattr(cache, "_load", read_slowly)
    waiting = asyncio.create_task(last(engine.generate(PROMPT, greedy(), "waiting", adapter)))
    assert await asyncio.to_thread(is_reading.wait, PATIENCE_SECONDS)

    beside = await last(engine.generate(PROMPT, LONG, "beside"))

    assert len(beside.outputs[0].token_ids) == 200
    assert not waiting.done()
    may_go_on.set()
    assert (await waiting).outputs[0].finish_reason == "length"
    await settle(engine)
