"""Decode steps replayed over static tensors give what eager steps give, whatever changes between two replays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from exactness import check_family
from loramux import LLMEngine, LoRARequest
from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.model import warm_up
from loramux.model.decode_graphs import Capture, DecodeGraphs, graph_capture
from loramux.model.decode_inputs import bucket_sizes
from loramux_kernels import select_backend
from replays import Recomputed, Tape
from tiny_engines import PROMPTS, engine_args, greedy, run, staggered, three_adapters
from tiny_models import FAMILIES

MakeAdapter = Callable[..., Path]
MakeEngine = Callable[..., LLMEngine]


@pytest.fixture
def make_engine(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    """Engines that capture their decode steps, by recomputing them unless told otherwise."""
    engines: list[LLMEngine] = []

    def make(capture: Capture | None = Recomputed, **changes: object) -> LLMEngine:
        monkeypatch.setattr(warm_up, "graph_capture", lambda _device: capture)
        engines.append(LLMEngine.from_engine_args(engine_args(tiny_llama, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


def graphs_of(engine: LLMEngine) -> DecodeGraphs:
    assert engine.runner.graphs is not None
    return engine.runner.graphs


@pytest.fixture
def adapters(make_adapter: MakeAdapter) -> list[LoRARequest]:
    return three_adapters(make_adapter)


# --- the same tokens


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gemma2",
        pytest.param("qwen2", marks=pytest.mark.slow),
        *(pytest.param(f, marks=pytest.mark.campaign) for f in FAMILIES if f not in ("llama", "gemma2", "qwen2")),
    ],
)
def test_a_mixed_batch_under_pressure_is_exact(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More adapters than slots, prompts in chunks, preemptions: against transformers + PEFT, logit by logit."""
    monkeypatch.setattr(warm_up, "graph_capture", lambda _device: Recomputed)
    replays: list[int] = []
    run_graph = DecodeGraphs.run
    monkeypatch.setattr(
        DecodeGraphs, "run", lambda self, sequences: replays.append(len(sequences)) or run_graph(self, sequences)
    )

    report = check_family(family, tmp_path)

    assert report.wrong == []
    assert report.max_logit_error < 1e-4
    assert report.num_preemptions > 0
    assert report.num_placements > 2
    assert len(set(replays)) > 2, "several sizes of batch were replayed"


def test_replays_and_eager_steps_choose_the_same_tokens(make_engine: MakeEngine, adapters: list[LoRARequest]) -> None:
    owners = [None, adapters[0], None, adapters[1], adapters[2], adapters[0], None, adapters[1]]
    eager = staggered(make_engine(None), owners)
    engine = make_engine()

    assert staggered(engine, owners) == eager
    assert graphs_of(engine).num_replays > 8


def test_a_tape_of_operators_gives_the_same_tokens(make_engine: MakeEngine) -> None:
    """No line of the model runs in its replays: nothing that a step needs is looked up on the host."""
    select_backend("torch")
    try:
        eager = staggered(make_engine(None, enable_lora=False), [None] * 5)
        engine = make_engine(Tape, enable_lora=False)
        assert staggered(engine, [None] * 5) == eager
    finally:
        select_backend(None)
    assert graphs_of(engine).num_replays > 5


# --- captures


def test_everything_is_captured_before_the_first_request_and_nothing_after(
    make_engine: MakeEngine, adapters: list[LoRARequest]
) -> None:
    captured: list[Recomputed] = []

    def capture(compute: Callable[[], None]) -> Recomputed:
        captured.append(Recomputed(compute))
        return captured[-1]

    engine = make_engine(capture, max_num_seqs=8)
    assert len(captured) == graphs_of(engine).num_captures == 2 * len(bucket_sizes(8))

    staggered(engine, [None, adapters[0], adapters[1]])
    staggered(engine, [adapters[2], adapters[0], None, adapters[2]])

    assert engine.runner.lora is not None
    assert engine.runner.lora.num_placements > 2
    assert len(captured) == graphs_of(engine).num_captures == 2 * len(bucket_sizes(8))


def test_without_adapters_there_is_one_family(make_engine: MakeEngine) -> None:
    assert graphs_of(make_engine(enable_lora=False)).num_captures == len(bucket_sizes(8))


def test_steps_with_prompts_are_not_replayed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("a", PROMPTS[0], greedy(3))
    engine.step()
    assert graphs_of(engine).num_replays == 0

    engine.step()
    assert graphs_of(engine).num_replays == 1
    engine.add_request("b", PROMPTS[1], greedy(3))
    engine.step()
    assert graphs_of(engine).num_replays == 1
    run(engine)


def test_a_model_that_cannot_be_captured_is_served_eagerly(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(_compute: Callable[[], None]) -> Recomputed:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        engine = make_engine(capture)

    assert engine.runner.graphs is None
    assert "decode steps not captured model=LlamaForCausalLM reason='operation not permitted" in caplog.text
    assert staggered(engine, [None]) == staggered(make_engine(None), [None])


def test_a_cpu_captures_nothing() -> None:
    assert graph_capture(torch.device("cpu")) is None


# --- padding


def decode(token: int, position: int, *blocks: int) -> ScheduledSequence:
    return ScheduledSequence(str(blocks), (token,), position, blocks, BASE_SLOT, 1, samples=True)


@torch.inference_mode()
def test_padding_rows_change_nothing_that_belongs_to_anyone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    cache = engine.runner.kv_cache
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]

    graphs_of(engine).run([decode(4, 5, 3, 9), decode(5, 0, 1), decode(6, 7, 2, 8), decode(7, 2, 0), decode(8, 1, 4)])

    written = [9 * 4 + 1, 1 * 4, 8 * 4 + 3, 0 * 4 + 2, 4 * 4 + 1]
    for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
        differs = (tensor != old).flatten(0, 1).flatten(1).any(dim=1)[: cache.num_blocks * 4]
        assert differs.nonzero().flatten().tolist() == sorted(written)


@torch.inference_mode()
def test_numbers_that_are_not_finite_in_scratch_blocks_stay_there(make_engine: MakeEngine) -> None:
    engine = make_engine()
    graphs, cache = graphs_of(engine), engine.runner.kv_cache
    sequences = [decode(4, 0, 3), decode(5, 0, 1), decode(6, 0, 2)]
    expected = graphs.run(sequences).logits.clone()
    for tensor in (*cache.keys, *cache.values):
        tensor[cache.num_blocks :] = float("nan")

    output = graphs.run(sequences)

    assert torch.equal(output.logits, expected)
    assert output.are_usable[:3].all()
