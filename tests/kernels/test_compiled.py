"""Every Triton kernel, compiled ahead of time for GPUs that are not here: compile_kernels.py has the list of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import loramux_kernels
from triton_process import run

HERE = Path(__file__).parent
SHARED_LIMITS = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "cuda:100": 227 * 1024, "hip:gfx942": 64 * 1024}
WGMMA_ROWS = 64


def check(target: str, cache: Path, *dtypes: str) -> None:
    """Compile; within the target's shared memory, without spills, and on Hopper without wgmma and what could become it.

    kernels/README.md says why no wgmma.
    """
    output = run("-W", "error", str(HERE / "compile_kernels.py"), target, *dtypes, TRITON_CACHE_DIR=str(cache))
    kernels = [json.loads(line) for line in output.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == shipped_kernels()
    assert [k for k in kernels if k["shared"] > SHARED_LIMITS[target] or k["spills"] or k["wgmma"]] == []
    assert [k for k in kernels if (k["block_m"] or 0) >= WGMMA_ROWS and k["num_stages"] > 1] == []


def shipped_kernels() -> set[str]:
    """The names of all kernels in the package's Triton modules."""
    modules = Path(loramux_kernels.__file__).parent.glob("*_triton.py")
    definition = re.compile(r"^def (_\w+_kernel)\(", re.MULTILINE)
    return {name for module in modules for name in definition.findall(module.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED_LIMITS)
def test_every_kernel_compiles_for_every_target(target: str, tmp_path: Path) -> None:
    check(target, tmp_path, "bfloat16", *(["float32"] if target == "cuda:90" else []))


@pytest.mark.campaign
@pytest.mark.parametrize("target", SHARED_LIMITS)
def test_every_kernel_compiles_in_every_dtype(target: str, tmp_path: Path) -> None:
    check(target, tmp_path, "float32", "float16", "bfloat16")
