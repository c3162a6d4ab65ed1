"""docs/gpu.md tells what a GPU needs as the code and the package have it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from loramux.model.decode_inputs import bucket_sizes
from loramux.model.device import MIN_CAPABILITY
from loramux.server.startup.arguments import KERNELS_VARIABLE

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "gpu.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def floors(requirements: list[str]) -> dict[str, str]:
    pairs = (requirement.partition(";")[0].split(">=") for requirement in requirements if ">=" in requirement)
    return {name.strip(): version.strip() for name, version in pairs}


def test_the_extra_asks_for_what_the_page_and_the_core_ask_for() -> None:
    extra = floors(PROJECT["optional-dependencies"]["gpu"])
    core = floors(PROJECT["dependencies"])

    assert "pip install 'loramux[gpu]'" in DOCS
    assert extra == {name: core[name] for name in ("torch", "triton")}
    assert f"| torch | {extra['torch']} or later" in DOCS
    assert f"| Triton | {extra['triton']} or later" in DOCS


def test_the_page_has_the_limits_of_the_code() -> None:
    assert f"compute capability {'.'.join(map(str, MIN_CAPABILITY))} or more" in DOCS
    assert f"for {', '.join(map(str, bucket_sizes(64)[:7]))} …" in DOCS
    assert f"`{KERNELS_VARIABLE}=torch`" in DOCS
