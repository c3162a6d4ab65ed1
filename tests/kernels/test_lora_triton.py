"""The Triton kernels without a GPU: equal to the truth under the interpreter, and compiled ahead of time.

Both need triton in a state of its own (the interpreter replaces the compiler), so each runs in a fresh process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_cases import make_batch
from loramux_kernels import lora_linear, select_backend
from loramux_kernels.backend import use_triton

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS_PER_TARGET = 11  # shrink, gather and expand in three dtypes, and the unaligned forms of one
SHARED_LIMITS = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "hip:gfx942": 64 * 1024}


def run(*arguments: str, **environment: str) -> str:
    """Run this Python on arguments from the repository root; its output, which a failure shows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.slow
def test_kernels_equal_the_truth_under_the_interpreter() -> None:
    output = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_lora.py"), TRITON_INTERPRET="1"
    )
    assert " passed" in output
    assert "skipped" not in output


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED_LIMITS)
def test_kernels_compile_ahead_of_time(target: str, tmp_path: Path) -> None:
    """Within the target's shared memory, without spills, and on Hopper without wgmma (kernels/README.md says why)."""
    output = run("-W", "error", str(HERE / "compile_lora.py"), target, TRITON_CACHE_DIR=str(tmp_path))
    kernels = [json.loads(line) for line in output.splitlines()]
    assert len(kernels) == KERNELS_PER_TARGET
    assert [k for k in kernels if k["shared"] > SHARED_LIMITS[target] or k["spills"] or k["wgmma"]] == []


def test_no_launch_takes_the_shape_that_hopper_compiles_wrongly() -> None:
    from loramux_kernels import lora_triton  # imports triton, which the other tests of this file leave alone

    launches = (lora_triton.SHRINK, lora_triton.EXPAND, lora_triton.GATHER)
    assert max(launch["BLOCK_M"] for launch in launches) < 64
    assert lora_triton.EXPAND["num_stages"] == 1


def test_importing_the_ops_and_serving_on_cpu_does_not_import_triton() -> None:
    program = (
        "import sys, torch, loramux_kernels as k;"
        "w = k.SlotWeights(1, 4, 4, torch.float32, 'cpu'); w.set(0, torch.ones(1, 4), torch.ones(4, 1));"
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
