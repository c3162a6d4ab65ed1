"""`loramux resolve`: the answer of the chain without a server, and an exit status that scripts can rely on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux.cli import main
from loramux.errors import ResolverFailed
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from loramux.lora.resolver import LoRAResolverRegistry
from remote_cases import Shelf, Upload


@pytest.fixture
def root(tmp_path: Path, make_adapter: Callable[..., Path]) -> Path:
    shutil.copytree(make_adapter("commands/sql", rank=4), tmp_path / "root" / "team" / "sql")
    (tmp_path / "root" / "broken").mkdir()
    (tmp_path / "root" / "broken" / CONFIG_NAME).write_text("{}")
    (tmp_path / "root" / "broken" / WEIGHTS_NAME).write_bytes(b"")
    return tmp_path / "root"


@pytest.fixture
def resolve(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        status = main(["resolve", *arguments, "--resolver-option", f"filesystem.root={root}"])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    LoRAResolverRegistry.register_resolver("shelf", shelf)
    yield shelf
    LoRAResolverRegistry.unregister_resolver("shelf")


def test_an_adapter_that_is_there_is_shown_with_its_place_and_content(
    resolve: Callable[..., tuple[int, str]], root: Path
) -> None:
    status, out = resolve("team/sql")
    assert status == 0
    assert f"team/sql: found by filesystem at {root}/team/sql" in out
    assert "rank 4" in out and "sha256 " in out


def test_explain_shows_every_resolver_in_order(resolve: Callable[..., tuple[int, str]], shelf: Shelf) -> None:
    shelf.uploads["other"] = Upload(b"")
    status, out = resolve("unknown", "--explain")
    lines = [line.split() for line in out.splitlines()]
    assert status == 3
    assert [line[:3] for line in lines[1:3]] == [["filesystem", "not", "found"], ["shelf", "not", "found"]]
    assert "adapter 'unknown' does not exist" in out


def test_what_is_broken_says_why_and_fails(resolve: Callable[..., tuple[int, str]]) -> None:
    status, out = resolve("broken")
    assert status == 1
    assert "refused: peft_type=None is not supported" in out


def test_a_source_that_is_out_of_order_fails_and_names_itself(
    resolve: Callable[..., tuple[int, str]], shelf: Shelf
) -> None:
    shelf.outage = ResolverFailed("the bucket refuses us", retryable=False)
    status, out = resolve("unknown", "--explain", "--json")
    document = json.loads(out)
    assert status == 1
    assert document["error"] == {"type": "ResolverFailed", "message": "the bucket refuses us"}
    assert [(step["resolver"], step["verdict"]) for step in document["steps"]] == [
        ("filesystem", "not found"),
        ("shelf", "failed"),
    ]


def test_what_a_remote_source_has_is_fetched_looked_at_and_thrown_away(
    resolve: Callable[..., tuple[int, str]],
    shelf: Shelf,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = make_adapter("commands/sql", rank=4)
    shelf.uploads["far/sql"] = Upload((folder / WEIGHTS_NAME).read_bytes(), (folder / CONFIG_NAME).read_bytes())
    status, out = resolve("far/sql", "--json")
    document: dict[str, Any] = json.loads(out)
    assert status == 0
    assert (document["resolver"], document["root"], document["revision"]) == ("shelf", "shelf://far/sql", "v1")
    assert (document["valid"], document["refusals"]) == (True, [])
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_an_unknown_resolver_is_a_wrong_setting(
    resolve: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["resolve", "x", "--lora-resolvers", "nobody"])
    assert status == 2
    assert "--lora-resolvers asks for 'nobody'" in capsys.readouterr().err
