"""`loramux plugins`: which are active, where they look, and why the others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux.cli import main


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAMUX_FILESYSTEM_ROOT", raising=False)


def test_plugins_are_listed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plugins", "--json", "--resolver-option", f"filesystem.root={tmp_path}"])

    statuses = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert status == 0
    assert statuses["filesystem"]["is_active"]
    assert str(tmp_path) in statuses["filesystem"]["looks_in"]


def test_plugins_that_would_keep_a_server_from_starting_fail_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plugins", "--lora-resolvers", "nope"])

    captured = capsys.readouterr()
    assert status == 2
    assert "filesystem" in captured.out
    assert captured.err.startswith("loramux plugins: error: --lora-resolvers asks for 'nope', but: it is not installed")


def test_plugins_are_listed_as_a_table_that_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plugins"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "distribution", "version", "active", "looks", "in", "hooks"]
    assert any("filesystem" in line and "no: installed but not configured" in line for line in lines)
