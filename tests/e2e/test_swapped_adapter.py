"""What a resolver found stays in its root after an eviction, whatever becomes of the folder; what is gone is 404."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from served import serving
from tiny_models import build_adapter


@pytest.fixture(scope="module")
def root(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(tiny_llama, tmp_path_factory.mktemp("swapped") / "root" / "evicting", seed=1).parent


@pytest.fixture(scope="module")
def outside(tiny_llama: Path, root: Path) -> Path:
    return build_adapter(tiny_llama, root.parent / "outside" / "adapter", seed=2)


@pytest.fixture(scope="module")
def url(tiny_llama: Path, root: Path) -> Iterator[str]:
    options = ("--enable-lora", "--max-loras", "1", "--max-cpu-loras", "1")
    plugin = ("--lora-resolvers", "filesystem", "--resolver-option", f"filesystem.root={root}")
    with serving(str(tiny_llama), *options, *plugin, log=root.parent / "server.log") as server:
        yield server.url


def ask(url: str, model: str) -> int:
    body = {"model": model, "prompt": "The quick brown fox", "max_tokens": 2, "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})  # fmt: skip # noqa: E501
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def listed(url: str) -> set[str]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
        return {model["id"] for model in json.load(response)["data"]}


def swap_config(folder: Path, outside: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(outside / "adapter_config.json")


def swap_weights(folder: Path, outside: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")


def swap_folder(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(outside)


def swap_parent(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder.parent)
    folder.parent.symlink_to(outside.parent)


def delete_folder(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [swap_config, swap_weights, swap_folder, swap_parent, delete_folder])
def test_an_evicted_adapter_that_left_its_root_does_not_exist_any_more(
    tiny_llama: Path, root: Path, outside: Path, url: str, change: Callable[[Path, Path], None]
) -> None:
    name = f"{change.__name__}/adapter"
    folder = build_adapter(tiny_llama, root / name, seed=3)
    assert ask(url, name) == 200
    assert ask(url, "evicting") == 200
    assert name in listed(url)

    change(folder, outside)

    assert ask(url, name) == 404
    assert name not in listed(url)


def test_an_evicted_adapter_that_was_replaced_is_served(tiny_llama: Path, root: Path, url: str) -> None:
    folder = build_adapter(tiny_llama, root / "replaced", seed=3)
    assert [ask(url, "replaced"), ask(url, "evicting")] == [200, 200]
    shutil.rmtree(folder)
    build_adapter(tiny_llama, folder, seed=4)
    assert ask(url, "replaced") == 200
