"""The filesystem plugin: a folder by its name, and never anything outside the root."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from loramux.errors import ConfigInvalid, ResolverFailed
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import ResolverContract
from loramux_filesystem import FilesystemLoRAResolver


def make_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_adapter(tmp_path / "root" / "team" / "sql")
    make_adapter(tmp_path / "secret")
    return tmp_path / "root"


class TestContract(ResolverContract):
    @pytest.fixture
    def resolver(self, root: Path) -> LoRAResolver:
        return FilesystemLoRAResolver(root)

    @pytest.fixture
    def known_name(self) -> str:
        return "team/sql"


async def find(root: Path, name: str) -> str | None:
    found = await FilesystemLoRAResolver(root).resolve_lora("base", name)
    return None if found is None else found.lora_path


async def test_a_nested_name_is_the_folder_below_the_root(root: Path) -> None:
    assert await find(root, "team/sql") == str(root / "team" / "sql")


async def test_the_root_itself_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert await find(tmp_path / "link", "team/sql") == str(root / "team" / "sql")


async def test_a_folder_without_a_config_is_no_adapter(root: Path) -> None:
    assert await find(root, "team") is None


async def test_a_file_is_no_adapter(root: Path) -> None:
    assert await find(root, "team/sql/adapter_config.json") is None


async def test_a_symlinked_folder_is_not_followed(root: Path) -> None:
    (root / "leak").symlink_to(root.parent / "secret")
    assert await find(root, "leak") is None


async def test_a_symlink_in_the_middle_of_a_name_is_not_followed(root: Path) -> None:
    (root / "up").symlink_to(root.parent)
    assert await find(root, "up/secret") is None


@pytest.mark.parametrize("file_name", ["adapter_config.json", "adapter_model.safetensors"])
async def test_a_symlinked_file_is_not_followed(root: Path, file_name: str) -> None:
    (root / "team" / "sql" / file_name).unlink()
    (root / "team" / "sql" / file_name).symlink_to(root.parent / "secret" / file_name)
    assert await find(root, "team/sql") is None


async def test_missing_weights_are_left_to_the_server_to_report(root: Path) -> None:
    (root / "team" / "sql" / "adapter_model.safetensors").unlink()
    assert await find(root, "team/sql") is not None


async def test_a_root_that_went_away_is_an_outage_and_not_an_unknown_name(root: Path) -> None:
    resolver = FilesystemLoRAResolver(root)
    shutil.rmtree(root)
    with pytest.raises(ResolverFailed, match=r"cannot read .*root"):
        await resolver.resolve_lora("base", "team/sql")


def test_a_root_that_does_not_exist_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"filesystem\.root='.*nowhere' must be an existing folder"):
        FilesystemLoRAResolver.from_config({"root": str(tmp_path / "nowhere")})


def test_without_a_root_it_is_not_configured() -> None:
    assert FilesystemLoRAResolver.from_config({}) is None


def test_it_names_its_options_so_that_others_are_refused() -> None:
    assert FilesystemLoRAResolver.option_names == ("root",)


def test_it_is_found_through_its_entry_point() -> None:
    (entry_point,) = entry_points(group="loramux", name="filesystem")
    assert entry_point.load() is FilesystemLoRAResolver


AUDIT = """
import asyncio, os, sys
from loramux_filesystem import FilesystemLoRAResolver
from loramux.lora.testing import HOSTILE_NAMES
root, secret = sys.argv[1:]
resolver = FilesystemLoRAResolver(root)
patterns = [*HOSTILE_NAMES, "{outside}", "leak", "leak/nested", "up/secret", "team/leak", "files", "loop", "loop/loop"]
names = [name.replace("{outside}", secret.lstrip("/")).replace("{known}", "team/sql") for name in patterns]
opened = []
async def ask_all():
    await resolver.resolve_lora("base", "warm-up/of-threads")
    sys.addaudithook(lambda event, args: event in ("open", "os.listdir", "os.scandir") and opened.append(args[0]))
    return [await resolver.resolve_lora("base", name) for name in names]
answers = asyncio.run(ask_all())
assert answers == [None] * len(names), answers
outside = [path for path in opened if not os.path.realpath(path).startswith(root + os.sep)]
assert outside == [], outside
open(secret)  # the hook itself is awake
assert opened[-1] == secret
"""


def test_no_hostile_name_or_symlink_opens_anything_outside_the_root(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (root / "leak").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    (root / "team" / "leak").symlink_to("../../secret")
    (root / "loop").symlink_to("loop")
    (root / "files").mkdir()
    for file_name in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "files" / file_name).symlink_to(secret / file_name)
    run = subprocess.run(
        [sys.executable, "-c", AUDIT, str(root), str(secret / "adapter_config.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_a_root_that_holds_more_than_adapters_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"filesystem\.root='/' cannot be used: it is the root of the whole file"):
        FilesystemLoRAResolver("/")
