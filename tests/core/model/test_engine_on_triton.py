"""The engine serves on Triton's kernels what it serves on torch: shown by the interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_process import run_interpreted


@pytest.mark.slow
def test_the_engine_answers_on_triton_as_on_torch() -> None:
    run_interpreted(Path(__file__).with_name("interpreted_answers.py"))
