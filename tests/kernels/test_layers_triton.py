"""The Triton form of the small ops without a GPU: the tests of the other forms, under the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_process import run

MOST_ROWS_AND_ATTENTION = "63 or 100 or attends or block"  # of attention test_attention_triton.py has more


@pytest.mark.slow
def test_the_small_ops_equal_the_truth_under_the_interpreter() -> None:
    file = str(Path(__file__).with_name("test_layers.py"))
    options = ("-q", "-p", "no:cacheprovider", "-k", f"not ({MOST_ROWS_AND_ATTENTION})")
    output = run("-m", "pytest", *options, file, TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output
