"""The Triton kernels of LoRA without a GPU: equal to the truth under the interpreter, which runs in a fresh process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_cases import ALL_CASES, covering_sample, make_batch
from loramux_kernels import lora_linear, select_backend
from loramux_kernels.backend import use_triton
from triton_process import run

HERE = Path(__file__).parent


def interpret(*options: str, timeout_seconds: float = 300) -> None:
    """Run the interpreted tests; all of them must have run."""
    file = str(HERE / "interpreted_lora.py")
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file)
    output = run(*arguments, timeout_seconds=timeout_seconds, TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output


@pytest.mark.slow
def test_kernels_equal_the_truth_under_the_interpreter() -> None:
    interpret()


@pytest.mark.campaign
def test_kernels_equal_the_truth_over_the_whole_space() -> None:
    interpret("-m", "campaign", timeout_seconds=7200)


def test_the_sample_has_every_two_values_together() -> None:
    sample = covering_sample()
    assert set().union(*(case.pairs() for case in sample)) == set().union(*(case.pairs() for case in ALL_CASES))
    assert (len(sample), len(ALL_CASES)) == (36, 1120)


def test_importing_the_ops_and_serving_on_cpu_does_not_import_triton() -> None:
    program = (
        "import sys, torch, loramux_kernels as k;"
        "w = k.SlotWeights(1, 4, 4, torch.float32, 'cpu', max_rank=1);"
        "w.set(0, torch.ones(1, 4), torch.ones(4, 1));"
        "k.lora_linear(torch.ones(2, 4), w, k.Segments((0,), (0,), (2,), 2), torch.zeros(2, 4));"
        "print('loramux_kernels.lora_triton' in sys.modules)"
    )
    assert run("-c", program).strip() == "False"


def test_triton_on_cpu_tensors_is_refused_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    batch = make_batch("identical", 4, (8,), (72, 104))
    select_backend("triton")
    try:
        with pytest.raises(RuntimeError, match="needs CUDA tensors, got one on cpu"):
            lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    finally:
        select_backend(None)


def test_the_interpreter_alone_changes_nothing_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    batch = make_batch("identical", 4, (8,), (72, 104))
    before = batch.y.clone()
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)  # torch: triton is not even imported here
    assert not torch.equal(batch.y, before)


def test_the_interpreter_never_serves_a_gpu_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda:0")
    with pytest.raises(RuntimeError, match="the interpreter is for tests"):
        use_triton(on_gpu)  # type: ignore[arg-type]  # stands for a CUDA tensor, which no CI machine has
    monkeypatch.delenv("TRITON_INTERPRET")
    assert use_triton(on_gpu)  # type: ignore[arg-type]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend='cuda' is not one of 'torch', 'numba', 'triton', None"):
        select_backend("cuda")  # type: ignore[arg-type]  # the point of the test
