"""The workspace: what is installed is this checkout, and all its parts fit together."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import loramux
from loramux.lora.loaded_plugin import load_plugin

ROOT = Path(__file__).parents[2]
PLUGIN_FOLDERS = sorted(
    path.parent for path in [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml")]
)
OUR_ENTRY_POINTS = [
    pytest.param(folder, name, id=name)
    for folder in PLUGIN_FOLDERS
    for name in tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["loramux"]
]


def project_of(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


@pytest.mark.parametrize(("folder", "name"), OUR_ENTRY_POINTS)
def test_every_entry_point_is_installed_from_this_checkout_and_loads(folder: Path, name: str) -> None:
    (entry_point,) = metadata.entry_points(group="loramux", name=name)
    assert entry_point.dist is not None
    assert entry_point.dist.name == project_of(folder)["name"]
    assert load_plugin(entry_point).name == name
    module = __import__(entry_point.module)
    assert Path(str(module.__file__)).is_relative_to(folder)


def test_every_installed_plugin_loads() -> None:
    names = {load_plugin(entry_point).name for entry_point in metadata.entry_points(group="loramux")}
    assert names >= {"filesystem", "hub", "s3", "template"}


@pytest.mark.parametrize("folder", [ROOT, *PLUGIN_FOLDERS], ids=lambda folder: folder.name)
def test_versions_are_in_step(folder: Path) -> None:
    project = project_of(folder)
    assert project["version"] == loramux.__version__
    assert metadata.version(project["name"]) == loramux.__version__


@pytest.mark.parametrize("folder", ["core", "kernels", "plugins", "contrib", "tests"])
def test_no_top_level_folder_is_a_package(folder: str) -> None:
    """A package `kernels` would hide the one that transformers looks for."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_installed_package_is_this_checkout() -> None:
    assert Path(loramux.__file__).is_relative_to(ROOT / "core")
