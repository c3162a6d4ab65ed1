"""The remote source of plugins/README.md keeps what every remote source promises, in about 40 lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME, RemoteLoRAResolver
from loramux.lora.testing import RemoteResolverContract

README = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
(EXAMPLE,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "RemoteLoRAResolver" in block)


class TestTheExample(RemoteResolverContract):
    @pytest.fixture
    def known_name(self) -> str:
        return "team/sql"

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1000}

    @pytest.fixture
    def resolver(self, known_name: str, known_files: Mapping[str, bytes]) -> Iterator[RemoteLoRAResolver]:
        memory = fsspec.filesystem("memory")
        for name, content in known_files.items():
            memory.pipe_file(f"/shelf/{known_name}/{name}", content)
        names: dict[str, Any] = {}
        exec(compile(EXAMPLE, "plugins/README.md", "exec"), names)
        yield names["UrlResolver"].from_config({"url": "memory://shelf"})
        memory.rm("/shelf", recursive=True)


def test_the_example_has_about_forty_lines() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 40
