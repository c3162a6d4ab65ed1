"""A model's decode step through the Triton kernels of LoRA: its launches, and its numbers beside the reference's.

Not collected by name: test_lora_model.py runs this file in a process of its own, with TRITON_INTERPRET=1 set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launches import Launches
from loramux.adapters.packed import PackedAdapter, pack
from loramux.adapters.weights import AdapterWeights, ModuleWeights
from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.config import EngineArgs
from loramux.model.batch_inputs import build_inputs
from loramux.model.forward_context import forward_context
from loramux.model.loader import load_model
from loramux.model.runner import ModelRunner
from loramux_kernels import lora_triton, select_backend

NUM_LAYERS = 2


class Calls(TorchDispatchMode):
    """Counts the calls of torch that a GPU would launch something for: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runner(tiny_llama: Path) -> Iterator[ModelRunner]:
    """Two adapters of ranks 4 and 17 on every linear layer of the decoder, in slots 0 and 1."""
    args = EngineArgs(model=str(tiny_llama), kernels="torch", max_model_len=64, enable_lora=True, max_loras=2)
    runner = ModelRunner(load_model(args), args)
    for slot, rank in enumerate((4, 17)):
        runner.place_adapter(slot, adapter(runner, rank))
    select_backend("triton")
    yield runner
    select_backend(None)


def adapter(runner: ModelRunner, rank: int) -> PackedAdapter:
    generator = torch.Generator().manual_seed(rank)
    modules = {
        path: ModuleWeights(
            torch.randn(rank, target.in_features, generator=generator) * 0.1,
            torch.randn(target.out_features, rank, generator=generator) * 0.1,
            1.0,
        )
        for path, target in runner.base.targets.items()
        if ".layers." in path
    }
    return pack(AdapterWeights(str(rank), str(rank), modules, 0), torch.float32, torch.device("cpu"))


def decode(runner: ModelRunner, slots: list[int]) -> torch.Tensor:
    """Logits of the first token of a sequence per slot."""
    sequences = [
        ScheduledSequence(str(row), (row + 1,), 0, (row,), slot, 1, samples=True) for row, slot in enumerate(slots)
    ]
    inputs = build_inputs(sequences, runner.kv_cache, torch.device("cpu"), has_lora=True)
    with torch.inference_mode(), forward_context(inputs.context):
        logits: torch.Tensor = runner.loaded.model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.logit_rows,
        ).logits[0]
    return logits


def test_a_decode_step_with_adapters_is_four_launches_per_layer_more_than_one_without(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q/k/v, o, gate/up, down, and the model's two ends; nothing else: no buffer is cleared, no row gathered.

    The ends are launched for though these adapters leave them alone: a launch does not depend on what is in a slot.
    """
    counts = []
    for slots in ([BASE_SLOT, BASE_SLOT, BASE_SLOT], [BASE_SLOT, 0, 1]):
        launches = Launches(run=False)  # the interpreter's own calls of torch are none of a GPU's
        with monkeypatch.context() as patch, Calls() as calls:
            launches.record(lora_triton, patch)
            decode(runner, slots)
        counts.append((calls.count, len(launches.seen)))
    (base_calls, base_launches), (lora_calls, lora_launches) = counts
    assert base_launches == 0
    assert lora_calls == base_calls
    assert lora_launches == 4 * NUM_LAYERS + 2


def test_the_logits_are_the_references(runner: ModelRunner) -> None:
    slots = [BASE_SLOT, 0, 1, 1]
    got = decode(runner, slots)
    select_backend("torch")
    torch.testing.assert_close(got, decode(runner, slots), atol=1e-4, rtol=1e-4)
