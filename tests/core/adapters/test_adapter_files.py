"""AdapterFiles: each file opened once, regular, whole, and noticed when it changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from loramux.adapters.adapter_files import AdapterFiles, open_adapter_files
from loramux.adapters.refusal import Refusal

MEGABYTE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_bytes(b"{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


def refusal(folder: Path, allowed_root: Path | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught, open_adapter_files(folder, allowed_root):
        pass
    return caught.value


def num_open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_all(files: AdapterFiles) -> tuple[bytes, bytes]:
    return bytes(files.config.read(files.config.nbytes)), bytes(files.weights.read(files.weights.nbytes))


def test_both_files_are_read_forward(folder: Path) -> None:
    with open_adapter_files(folder) as files:
        assert (files.config.nbytes, files.weights.nbytes) == (2, 7)
        assert (files.weights.read(3), files.weights.read(100)) == (b"wei", b"ghts")
        assert not files.has_changed()


def test_everything_is_closed_even_after_a_refusal(folder: Path) -> None:
    before = num_open_descriptors()
    with open_adapter_files(folder):
        pass
    (folder / "adapter_model.safetensors").unlink()
    refusal(folder)
    (folder / "adapter_model.safetensors").mkdir()
    refusal(folder)
    assert num_open_descriptors() == before


def test_symlinks_are_followed_as_the_hub_cache_has_them(tmp_path: Path, folder: Path) -> None:
    repository = tmp_path / "models--acme--adapter"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for place, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (folder / name).rename(repository / "blobs" / str(place))
        (snapshot / name).symlink_to(Path("../../blobs") / str(place))
    latest = tmp_path / "latest"
    latest.symlink_to(snapshot)
    with open_adapter_files(latest) as files:
        assert read_all(files) == (b"{}", b"weights")
        assert not files.has_changed()


def test_a_missing_folder_is_refused_without_its_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent").reason == "its folder cannot be opened: No such file or directory."
    assert refusal(Path("nul\0")).reason == "its folder cannot be opened: it is not a usable path."


def test_a_file_is_no_folder(folder: Path) -> None:
    assert refusal(folder / "adapter_config.json").reason == "its folder cannot be opened: Not a directory."


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).reason == f"its folder has no {name}."


def test_a_pickle_alone_is_refused_unopened(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.bin")
    found = refusal(folder)
    assert found.code == "adapter_format_unsupported"
    assert found.reason == (
        "has only adapter_model.bin, a pickle file that is never opened; save it as adapter_model.safetensors."
    )


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    os.mkfifo(folder / "adapter_model.bin")
    with open_adapter_files(folder) as files:
        assert read_all(files) == (b"{}", b"weights")


def test_shards_are_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors.index.json").write_text("{}")
    found = refusal(folder)
    assert found.code == "adapter_format_unsupported"
    assert found.reason == "is split into shards (adapter_model.safetensors.index.json); not supported."


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_only_regular_files_are_read_and_a_fifo_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder).reason == f"{name} is not a regular file."
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert refusal(folder).reason == f"{name} is not a regular file."


def test_a_symlink_loop_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("adapter_config.json")
    assert refusal(folder).reason.startswith("adapter_config.json cannot be opened: ")


def test_a_hole_makes_a_file_sparse(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(b"x" * 8192)
        stream.truncate(4 * MEGABYTE)
    with open_adapter_files(folder) as files:
        assert files.weights.is_sparse()
        assert files.weights.read(3) == b"xxx"


@pytest.mark.parametrize("nbytes", [0, 100, 4 * MEGABYTE])
def test_a_written_file_is_not_sparse(folder: Path, nbytes: int) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"x" * nbytes)
    with open_adapter_files(folder) as files:
        assert not files.weights.is_sparse()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_write_in_place_is_noticed(folder: Path, name: str) -> None:
    with open_adapter_files(folder) as files:
        (folder / name).write_bytes(b"anything")
        assert files.has_changed()


def test_a_replacement_is_noticed(folder: Path, tmp_path: Path) -> None:
    with open_adapter_files(folder) as files:
        (tmp_path / "new").write_bytes(b"weights")
        (tmp_path / "new").replace(folder / "adapter_model.safetensors")
        assert files.has_changed()


def test_a_removed_file_has_changed(folder: Path) -> None:
    with open_adapter_files(folder) as files:
        (folder / "adapter_config.json").unlink()
        assert files.has_changed()


def test_a_folder_swapped_by_rename_still_gives_one_consistent_pair(folder: Path, tmp_path: Path) -> None:
    with open_adapter_files(folder) as files:
        folder.rename(tmp_path / "old")
        folder.mkdir()
        assert not files.has_changed()
        assert read_all(files) == (b"{}", b"weights")


class TestBelowAnAllowedRoot:
    """`tmp_path/root/team/sql` is the adapter, `tmp_path/outside/team/sql` what must never be read."""

    @pytest.fixture
    def root(self, tmp_path: Path, folder: Path) -> Path:
        for place in ("root", "outside"):
            shutil.copytree(folder, tmp_path / place / "team" / "sql")
        return tmp_path / "root"

    @pytest.mark.parametrize("name", ["team/sql", "team"])
    def test_plain_folders_are_opened(self, root: Path, name: str) -> None:
        if name == "team":
            shutil.copytree(root / "team" / "sql", root / "team", dirs_exist_ok=True)
        with open_adapter_files(root / name, root) as files:
            assert read_all(files) == (b"{}", b"weights")

    def test_the_root_may_be_the_adapter_and_a_symlink(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(root / "team" / "sql")
        with open_adapter_files(tmp_path / "link", tmp_path / "link") as files:
            assert read_all(files) == (b"{}", b"weights")

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_file_that_became_a_symlink_is_refused(self, root: Path, tmp_path: Path, name: str) -> None:
        (root / "team" / "sql" / name).unlink()
        (root / "team" / "sql" / name).symlink_to(tmp_path / "outside" / "team" / "sql" / name)
        reason = refusal(root / "team" / "sql", root).reason
        assert reason == f"{name} cannot be opened: Too many levels of symbolic links."

    @pytest.mark.parametrize("name", ["team", "team/sql"])
    def test_a_folder_that_became_a_symlink_is_refused(self, root: Path, tmp_path: Path, name: str) -> None:
        before = num_open_descriptors()
        (root / name).rename(tmp_path / "moved")
        (root / name).symlink_to(tmp_path / "outside" / name)
        assert refusal(root / "team" / "sql", root).reason == "its folder cannot be opened: Not a directory."
        assert num_open_descriptors() == before

    @pytest.mark.parametrize("path", ["outside/team/sql", "root/../outside/team/sql", "root-and-more"])
    def test_a_folder_that_is_not_below_the_root_is_refused(self, root: Path, tmp_path: Path, path: str) -> None:
        assert refusal(tmp_path / path, root).reason == "its folder cannot be opened: it is not a usable path."
