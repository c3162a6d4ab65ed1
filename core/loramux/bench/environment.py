"""What a measurement was made with: machine, versions, date; figures say nothing without it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loramux import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "aiohttp")
_CPU_INFO = Path("/proc/cpuinfo")


def environment() -> dict[str, object]:
    """Describe the machine that this process runs on; imports nothing heavy."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "loramux": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "system": platform.platform(),
        "processor": processor(),
        "num_cores": num_cores(),
    }


def processor() -> str:
    """Name the CPU as its maker does, where the system tells."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
