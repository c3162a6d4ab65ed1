"""Names that nobody has: however many there are, no file outside the roots, no connection, no memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "unknown_names.py"
MOST_GROWTH_NBYTES = 5 * 2**20


@pytest.mark.parametrize("num_names", [5_000, pytest.param(1_000_000, marks=pytest.mark.campaign)])
def test_unknown_names_open_nothing_outside_the_roots_and_leave_nothing_behind(tmp_path: Path, num_names: int) -> None:
    root = tmp_path / "root"
    (root / "sql").mkdir(parents=True)
    (root / "sql" / "adapter_config.json").write_text("{}")
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "secret").mkdir()

    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), str(num_names)], capture_output=True, text=True, check=True
    )

    result = json.loads(process.stdout)
    sys.stdout.write(f"{num_names} unknown names: {result['growth_nbytes'] / 2**20:.1f} MiB\n")
    assert (result["outside"], result["num_served"]) == ([], 0)
    assert result["growth_nbytes"] < MOST_GROWTH_NBYTES
