"""Make the peers' own environments: `python contrib/benchmarks/peers/environments.py [NAME ...]`.

Each comes under `peers/.environments/NAME` from a file in `peers/requirements/`: a virtual environment from NAME.txt,
npm packages from NAME.json. Without names, those that take part by default are made. An environment whose file has
not changed since is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PEERS = Path(__file__).resolve().parent
DEFAULT = ("llama_cpp",)
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""What a package index may bring for another build of torch, and what text does not need; importing it would fail."""


def main() -> int:
    """Make what was asked for; 0 when all of it is there."""
    files = {file.stem: file for file in sorted((PEERS / "requirements").iterdir())}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(files))
    names = parser.parse_args().names or DEFAULT
    if unknown := set(names) - files.keys():
        parser.error(f"nothing is known of {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    failed = [name for name in names if not ensure(files[name], PEERS / ".environments" / name)]
    for name in failed:
        sys.stderr.write(f"{name} could not be installed\n")
    return 1 if failed else 0


def ensure(requirements: Path, home: Path) -> bool:
    """Install into a folder; `installed` in it holds what was asked for, and is written last."""
    marker, wanted = home / "installed", requirements.read_text()
    if marker.is_file() and marker.read_text() == wanted:
        return True
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    is_done = _npm(requirements, home) if requirements.suffix == ".json" else _pip(requirements, home)
    if is_done:
        marker.write_text(wanted)
    return is_done


def _npm(requirements: Path, home: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("npm is needed: install Node.js 20 or later\n")
        return False
    shutil.copy(requirements, home / "package.json")
    return _run([npm, "install", "--prefix", str(home), "--ignore-scripts", "--no-audit", "--no-fund"])


def _pip(requirements: Path, home: Path) -> bool:
    venv.create(home, with_pip=True)
    pip = str(home / "bin" / "pip")
    is_done = _run([pip, "install", "--requirement", str(requirements)])
    unwanted = UNWANTED.get(requirements.stem, ())
    return is_done and (not unwanted or _run([pip, "uninstall", "--yes", *unwanted]))


def _run(command: Sequence[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - pip and npm, on files of ours


if __name__ == "__main__":
    sys.exit(main())
