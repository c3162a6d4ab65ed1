"""The template: an index file that maps names to folders."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from loramux.errors import ResolverFailed
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import ResolverContract
from loramux_resolver_template import IndexLoRAResolver


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "folders" / "sql").mkdir(parents=True)
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"sql-lora": "folders/sql"}))
    return path


class TestContract(ResolverContract):
    @pytest.fixture
    def resolver(self, index: Path) -> LoRAResolver:
        return IndexLoRAResolver(index)

    @pytest.fixture
    def known_name(self) -> str:
        return "sql-lora"


async def test_a_relative_folder_is_meant_from_the_index(index: Path) -> None:
    found = await IndexLoRAResolver(index).resolve_lora("base", "sql-lora")
    assert found is not None
    assert found.lora_path == str(index.parent / "folders" / "sql")


async def test_a_toml_index_works_too(index: Path) -> None:
    toml = index.with_suffix(".toml")
    toml.write_text('"sql-lora" = "folders/sql"\n')
    assert await IndexLoRAResolver(toml).resolve_lora("base", "sql-lora") is not None


@pytest.mark.parametrize("text", ["{", "[]", '{"sql-lora": 1}'])
def test_a_broken_index_is_an_error_and_not_an_unknown_name(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(ResolverFailed, match=r"index\.json"):
        asyncio.run(IndexLoRAResolver(index).resolve_lora("base", "sql-lora"))


def test_without_an_index_it_is_not_configured() -> None:
    assert IndexLoRAResolver.from_config({}) is None


def test_it_is_found_through_its_entry_point() -> None:
    (entry_point,) = entry_points(group="loramux", name="template")
    assert entry_point.load() is IndexLoRAResolver
