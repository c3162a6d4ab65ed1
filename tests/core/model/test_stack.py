"""Recorded decode steps: a tape of all layers gives what the layers give, whatever changes between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from exactness import check_family
from loramux import LLMEngine, LoRARequest
from loramux.config import EngineArgs
from loramux.model.fused.stack import LayerStack
from loramux.model.loader import load_model
from loramux.model.runner import ModelRunner
from loramux_kernels import select_backend
from loramux_kernels.backend import use_numba
from loramux_kernels.team import Loop
from tiny_engines import PROMPTS, engine_args, greedy, run, staggered, three_adapters
from tiny_models import build_model

MakeAdapter = Callable[..., Path]
MakeEngine = Callable[..., LLMEngine]

pytestmark = pytest.mark.skipif(not use_numba(torch.empty(0)), reason="the loops need numba and torch's GNU OpenMP")


@pytest.fixture
def make_engine(tiny_llama: Path) -> Iterator[MakeEngine]:
    engines: list[LLMEngine] = []

    def make(**changes: object) -> LLMEngine:
        engines.append(LLMEngine.from_engine_args(engine_args(tiny_llama, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture
def adapters(make_adapter: MakeAdapter) -> list[LoRARequest]:
    return three_adapters(make_adapter)


def stack_of(engine: LLMEngine) -> LayerStack:
    stack = engine.runner.fused.stack
    assert stack is not None
    return stack


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[list[int]]]], list[list[int]]]:
    """Computes with layers that run one by one, whatever the context."""

    def compute(work: Callable[[], list[list[int]]]) -> list[list[int]]:
        with monkeypatch.context() as patch:
            patch.setattr(LayerStack, "__call__", LayerStack._compute)
            return work()

    return compute


@pytest.mark.parametrize("family", ["llama", "mistral", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_a_mixed_batch_under_pressure_is_exact(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More adapters than slots, prompts in chunks, preemptions: against transformers + PEFT, logit by logit."""
    replayed: list[int] = []
    run_tape = LayerStack._run
    monkeypatch.setattr(
        LayerStack,
        "_run",
        lambda self, recorded, rows, *more: replayed.append(len(rows)) or run_tape(self, recorded, rows, *more),
    )

    report = check_family(family, tmp_path)

    assert report.wrong == []
    assert report.max_logit_error < 1e-4
    assert report.num_preemptions > 0
    assert report.num_placements > 2
    assert len(set(replayed)) > 2, "several sizes of batch were replayed"


def test_tapes_and_single_layers_choose_the_same_tokens(
    make_engine: MakeEngine, adapters: list[LoRARequest], unrecorded: Callable[..., list[list[int]]]
) -> None:
    owners = [None, adapters[0], None, adapters[1], adapters[2], adapters[0], None, adapters[1]]
    expected = unrecorded(lambda: staggered(make_engine(), owners))
    engine = make_engine()

    assert staggered(engine, owners) == expected
    assert stack_of(engine).num_replays > 8


def test_a_number_of_rows_is_recorded_once_without_adapters_and_once_with(
    make_engine: MakeEngine, adapters: list[LoRARequest]
) -> None:
    engine = make_engine()
    staggered(engine, [None, None])
    assert (stack_of(engine).num_recordings, stack_of(engine).num_replays) == (2, 4)  # of 2 rows, and of the last one

    staggered(engine, [None, None])
    assert (stack_of(engine).num_recordings, stack_of(engine).num_replays) == (2, 10)

    for owner in adapters:  # the third takes the slot of the first
        staggered(engine, [None, owner])
    assert stack_of(engine).num_recordings == 4
    assert engine.runner.lora is not None
    assert engine.runner.lora.num_placements == 3


def test_an_adapter_that_takes_a_slot_is_the_one_that_its_rows_get(
    make_engine: MakeEngine, adapters: list[LoRARequest], unrecorded: Callable[..., list[list[int]]]
) -> None:
    """The same rows, the same slot, another adapter: nothing but the slot's content tells the steps apart."""
    expected = unrecorded(lambda: [staggered(make_engine(max_loras=1), [owner])[0] for owner in adapters])
    engine = make_engine(max_loras=1)

    assert [staggered(engine, [owner])[0] for owner in adapters] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert stack_of(engine).num_recordings == 1


def test_a_slot_that_was_emptied_and_filled_anew_is_read_anew(
    make_engine: MakeEngine, adapters: list[LoRARequest], unrecorded: Callable[..., list[list[int]]]
) -> None:
    def work() -> list[list[int]]:
        engine = make_engine(max_loras=1)
        tokens = staggered(engine, [adapters[0]])
        engine.remove_lora(adapters[0].lora_int_id)
        return tokens + staggered(engine, [adapters[2]])

    assert work() == unrecorded(work)


def test_two_threads_and_a_change_of_backend_make_no_difference(
    make_engine: MakeEngine, adapters: list[LoRARequest]
) -> None:
    owners = [None, adapters[0], adapters[1], None]
    engine = make_engine()
    expected = staggered(engine, owners)
    num_replays = stack_of(engine).num_replays
    select_backend("torch")
    try:
        assert staggered(engine, owners) == expected
        assert stack_of(engine).num_replays == num_replays
        select_backend(None)
        torch.set_num_threads(2)
        assert staggered(engine, owners) == expected
        assert stack_of(engine).num_replays > num_replays
    finally:
        select_backend(None)
        torch.set_num_threads(1)


def test_a_recorded_step_is_one_call_from_embedded_tokens_to_logits(
    make_engine: MakeEngine, adapters: list[LoRARequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    for index, owner in enumerate((None, adapters[0])):
        engine.add_request(str(index), PROMPTS[index], greedy(9), owner)
    while (2, True) not in stack_of(engine)._recorded:
        engine.step()
    runs: list[int] = []
    run_loop = Loop.run
    monkeypatch.setattr(Loop, "run", lambda self, *a, **more: runs.append(a[0]) or run_loop(self, *a, **more))

    engine.step()

    assert len(runs) == 1
    assert runs[0] > 2 * 10, "the loops of both layers"
    run(engine)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # PEFT, as it writes the adapter
def test_rows_of_adapters_on_lm_head_and_others_share_a_tape(
    make_engine: MakeEngine, make_adapter: MakeAdapter, unrecorded: Callable[..., list[list[int]]]
) -> None:
    targets = ["q_proj", "lm_head"]
    owners = [
        LoRARequest(name, number, str(make_adapter(name, rank=4, seed=number, **options)))
        for number, (name, options) in enumerate({"head": {"targets": targets}, "plain": {}}.items(), 1)
    ]
    expected = unrecorded(lambda: staggered(make_engine(), [owners[0], owners[1], None]))
    engine = make_engine()

    assert staggered(engine, [owners[0], owners[1], None]) == expected
    assert stack_of(engine).num_replays > 3


def test_steps_with_prompts_are_not_recorded(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("a", PROMPTS[0], greedy(3))
    engine.step()
    assert stack_of(engine).num_recordings == 0
    engine.step()
    assert stack_of(engine).num_recordings == 1
    run(engine)


def test_layers_that_torch_computes_are_served_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An activation other than SiLU."""
    folder = build_model(tmp_path / "m", "llama", hidden_act="gelu")
    engine = LLMEngine.from_engine_args(engine_args(folder))
    with caplog.at_level("INFO"):
        tokens = staggered(engine, [None, None])

    assert "decode steps not recorded reason=\"torch's" in caplog.text
    assert caplog.text.count("decode steps not recorded") == 1
    assert stack_of(engine).num_recordings == stack_of(engine).num_replays == 0
    select_backend("torch")
    try:
        assert staggered(engine, [None, None]) == tokens
    finally:
        select_backend(None)
        engine.shutdown()


def test_a_model_whose_layers_are_not_all_fused_has_no_stack(tiny_llama: Path) -> None:
    args = EngineArgs(model=str(tiny_llama), max_model_len=64)
    loaded = load_model(args)

    class Shifted(type(loaded.model.model.layers[1].mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    mlp: nn.Module = loaded.model.model.layers[1].mlp
    mlp.__class__ = Shifted

    assert ModelRunner(loaded, args).fused.stack is None
