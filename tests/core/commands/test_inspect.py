"""`loramux inspect`: what is in an adapter, every check with its verdict, with and without a base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux.adapters.peft_checkpoint import CHECKS
from loramux.cli import main
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME


@pytest.fixture
def adapter(make_adapter: Callable[..., Path]) -> Path:
    return make_adapter("commands/sql", rank=4)


@pytest.fixture
def spoilt(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    def spoil(**fields: object) -> Path:
        folder = shutil.copytree(adapter, tmp_path / "spoilt")
        config = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps(config | fields))
        return folder

    return spoil


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def run(*arguments: str) -> tuple[int, Any]:
        status = main(["inspect", *arguments, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def verdicts(document: Any) -> dict[str, str]:
    return {result["check"]: result["verdict"] for result in document["checks"]}


def test_without_a_base_all_is_checked_that_needs_none(inspect: Callable[..., tuple[int, Any]], adapter: Path) -> None:
    status, document = inspect(str(adapter))
    expected = {**dict.fromkeys(CHECKS, "ok"), "base name": "not checked", "base weights": "not checked"}
    assert (status, document["valid"]) == (0, True)
    assert verdicts(document) == expected
    module = next(module for module in document["modules"] if module["module"].endswith("q_proj"))
    assert (module["rank"], module["in_features"], module["out_features"]) == (4, 64, 64)


def test_against_a_base_everything_is_checked(
    inspect: Callable[..., tuple[int, Any]], adapter: Path, tiny_llama: Path
) -> None:
    status, document = inspect(str(adapter), "--base", str(tiny_llama))
    assert (status, set(verdicts(document).values())) == (0, {"ok"})


def test_an_adapter_of_another_base_is_refused_where_there_is_one_to_compare(
    inspect: Callable[..., tuple[int, Any]], spoilt: Callable[..., Path], tiny_llama: Path
) -> None:
    folder = str(spoilt(base_model_name_or_path="org/other-model"))
    assert inspect(folder)[0] == 0
    status, document = inspect(folder, "--base", str(tiny_llama))
    assert (status, verdicts(document)["base name"], verdicts(document)["layout"]) == (1, "refused", "not checked")
    assert inspect(folder, "--base", str(tiny_llama), "--base-match", "off")[0] == 0


@pytest.mark.parametrize(
    ("fields", "check", "reason"),
    [
        ({"use_dora": True}, "config", "DoRA (use_dora=true) is not supported"),
        ({"r": 8}, "layout", "config says r=8, tensor has 4"),
        ({"init_lora_weights": "pissa"}, "config", "adapter is relative to a modified base"),
    ],
)
def test_the_check_that_refuses_says_why_and_later_ones_are_not_made(
    inspect: Callable[..., tuple[int, Any]], spoilt: Callable[..., Path], fields: Any, check: str, reason: str
) -> None:
    status, document = inspect(str(spoilt(**fields)))
    refused = [result for result in document["checks"] if result["verdict"] == "refused"]
    assert (status, document["valid"], document["digest"]) == (1, False, None)
    assert [result["check"] for result in refused] == [check]
    assert reason in refused[0]["reason"]


def test_a_rank_above_the_limit_is_refused(inspect: Callable[..., tuple[int, Any]], adapter: Path) -> None:
    status, document = inspect(str(adapter), "--max-lora-rank", "2")
    assert (status, verdicts(document)["layout"]) == (1, "refused")


def test_a_truncated_file_fails_at_its_header_or_its_values(
    inspect: Callable[..., tuple[int, Any]], spoilt: Callable[..., Path]
) -> None:
    folder = spoilt()
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[:-8])
    status, document = inspect(str(folder))
    assert (status, verdicts(document)["header"]) == (1, "refused")


def test_a_name_is_looked_up_by_the_resolvers(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(adapter, tmp_path / "team" / "sql")
    option = f"filesystem.root={tmp_path}"
    assert main(["inspect", "team/sql", "--resolver-option", option]) == 0
    shown = capsys.readouterr().out
    assert main(["inspect", "team/unknown", "--resolver-option", option]) == 3
    assert "adapter 'team/unknown' does not exist" in capsys.readouterr().out
    assert f"{tmp_path}/team/sql" in shown
    assert "model.layers.0.self_attn.q_proj" in shown


def test_the_table_shows_checks_and_modules(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(adapter)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "verdict", "reason"]
    assert any(line.split()[:2] == ["model.layers.0.self_attn.q_proj", "4"] for line in lines if line.split())
