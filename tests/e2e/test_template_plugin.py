"""The template becomes a wheel, installs with pip into a fresh environment, and the server lists it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

OFFLINE = ("--no-deps", "--no-index")
TEMPLATE = Path(__file__).parents[2] / "contrib" / "resolver-template"


def run(*command: str | Path, **environment: str) -> str:
    finished = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment that sees the packages of this one after its own, so that nothing large is downloaded."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "after.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_template_installs_as_a_wheel_and_is_listed(python: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", tmp_path, TEMPLATE)
    (wheel,) = tmp_path.glob("loramux_resolver_template-*.whl")

    run(python, "-m", "pip", "install", *OFFLINE, "--force-reinstall", wheel)

    where = run(python, "-c", "import loramux_resolver_template as plugin; print(plugin.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "environment")
    listing = run(python, "-m", "loramux.cli", "plugins", LORAMUX_TEMPLATE_INDEX=str(tmp_path / "index.json"))
    (line,) = [line for line in listing.splitlines() if "loramux-resolver-template" in line]
    assert line.split()[:4] == ["template", "loramux-resolver-template", "0.1.0", "yes"]
