"""The Triton attention kernels without a GPU: equal to the truth under the interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_process import run


@pytest.mark.slow
def test_kernels_equal_the_truth_under_the_interpreter() -> None:
    file = str(Path(__file__).with_name("interpreted_attention.py"))
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output
