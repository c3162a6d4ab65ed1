"""The Triton form of the small ops without a GPU: the tests of the other forms, under the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_process import run

# of attention test_attention_triton.py has more, and 16 bits beside float32 are for a CPU's own loops
LEFT_OUT = "63 or 100 or attends or block or 16_bits"


@pytest.mark.slow
def test_the_small_ops_equal_the_truth_under_the_interpreter() -> None:
    file = str(Path(__file__).with_name("test_layers.py"))
    options = ("-q", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})")
    output = run("-m", "pytest", *options, file, TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output
