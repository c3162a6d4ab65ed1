"""What docs/structured-outputs.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "structured-outputs.md").read_text()


def test_the_offline_example_runs(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "LLM(" in block]
    namespace: dict[str, object] = {}

    exec(compile(example.replace("/models/llama-3.2-1b", str(tiny_llama)), "structured-outputs.md", "exec"), namespace)

    assert re.match(r"(yes|no)\n\{.*\n[0-9]{4}-[0-9]{2}-[0-9]{2}\n[0-9]+", capsys.readouterr().out, flags=re.DOTALL)
