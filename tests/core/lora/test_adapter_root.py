from __future__ import annotations

from pathlib import Path

import pytest

from loramux.lora.adapter_root import why_unsafe


def test_a_folder_of_ones_own_is_safe(tmp_path: Path) -> None:
    assert why_unsafe(tmp_path) is None


def test_the_whole_file_system_is_not(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")

    assert "whole file system" in (why_unsafe(Path("/")) or "")
    assert "whole file system" in (why_unsafe(tmp_path / "link") or "")


def test_a_home_directory_is_not_but_a_folder_in_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "adapters").mkdir()

    assert "home directory" in (why_unsafe(tmp_path) or "")
    assert why_unsafe(tmp_path / "adapters") is None


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_what_everybody_may_write_is_not(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)

    assert "every user" in (why_unsafe(tmp_path) or "")
