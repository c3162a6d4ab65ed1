"""The whole engine on Triton's kernels, run by Triton's interpreter on a CPU, with decode steps replayed from tapes.

Not collected by name: test_warm_up.py runs this file in a process of its own, with TRITON_INTERPRET=1 set before triton
is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compilations import Compilations, record_compilations
from loramux import LLMEngine, LoRARequest
from loramux.model import warm_up
from loramux_kernels import select_backend
from replays import Tape
from tiny_engines import engine_args, greedy, kv_bytes, run

MakeAdapter = Callable[..., Path]
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def compilations() -> Iterator[Compilations]:
    assert os.environ["TRITON_INTERPRET"] == "1"
    with record_compilations() as compilations:
        yield compilations
    select_backend(None)


@pytest.fixture
def adapters(make_adapter: MakeAdapter) -> list[LoRARequest]:
    """Of several ranks, on all layers, on some, and on the two ends."""
    kinds = {"all": (8, LLAMA), "some": (3, LLAMA[:1]), "ends": (17, ("embed_tokens", "lm_head", "down_proj"))}
    return [
        LoRARequest(name, number, str(make_adapter(f"interpreted-{name}", rank=rank, targets=targets, seed=number)))
        for number, (name, (rank, targets)) in enumerate(kinds.items(), 1)
    ]


def make_engine(model: Path, **changes: object) -> LLMEngine:
    """Its blocks are of another size than those of the probe, which runs before the warm-up."""
    return LLMEngine.from_engine_args(
        engine_args(model, block_size=8, kv_cache_memory_bytes=kv_bytes(160), max_num_seqs=4, **changes)
    )


def answers(engine: LLMEngine, adapters: list[LoRARequest]) -> list[list[int]]:
    """Prompts whole and in chunks, one beside the other; one is longer than decode attention takes at once."""
    owners = [None, *adapters, adapters[0]]
    for index, owner in enumerate(owners):
        prompt = [(7 * index + 13 * place) % 300 + 5 for place in range((5, 21, 1, 270, 2)[index])]
        engine.add_request(str(index), prompt, greedy(2 + index), owner)
    outputs = run(engine)
    return [outputs[str(index)].outputs[0].token_ids for index in range(len(owners))]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # PEFT, as it writes the adapters
def test_the_engine_gives_the_tokens_of_the_reference_and_serving_compiles_nothing(
    tiny_llama: Path, adapters: list[LoRARequest], compilations: Compilations, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_engine(tiny_llama, kernels="torch", max_num_batched_tokens=48)
    expected = answers(reference, adapters)
    reference.shutdown()
    assert compilations.num_launches == 0

    monkeypatch.setattr(warm_up, "graph_capture", lambda _device: Tape)
    engine = make_engine(tiny_llama, kernels="triton", max_num_batched_tokens=48)
    warm = set(compilations.keys)
    num_launches = compilations.num_launches

    assert answers(engine, adapters) == expected

    assert engine.runner.graphs is not None
    assert engine.runner.graphs.num_replays > 0
    assert compilations.num_launches > num_launches
    assert compilations.keys - warm == set()
    engine.shutdown()
