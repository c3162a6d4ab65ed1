"""A fresh process for what needs triton in a state of its own: the interpreter replaces the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run(*arguments: str, timeout_seconds: float = 300, **environment: str) -> str:
    """Run this Python on arguments from the repository root; its output, which a failure shows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env=kept | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1", "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def run_interpreted(path: Path) -> None:
    """Run the tests of a file under Triton's interpreter; all must pass, and none be skipped."""
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output
