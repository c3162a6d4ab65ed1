from __future__ import annotations

from pathlib import Path

import pytest

from loramux.errors import ConfigInvalid
from loramux.server.startup.config import LoRAModule
from loramux.server.startup.lora_modules import parse_lora_modules, refuse_missing_folders


def test_both_forms_can_be_mixed_and_empty_items_are_skipped() -> None:
    items = ["sql=/adapters/sql", "", '{"name": "org/json", "path": "/a=b", "base_model_name": "llama"}']

    assert parse_lora_modules(items) == [
        LoRAModule("sql", "/adapters/sql"),
        LoRAModule("org/json", "/a=b", "llama"),
    ]


def test_a_path_may_hold_an_equals_sign() -> None:
    assert parse_lora_modules(["sql=/a=b"]) == [LoRAModule("sql", "/a=b")]


@pytest.mark.parametrize("item", ["sql", "sql=/a,json=/b", "sql=/a,x", "{", '{"name": "sql", "path": "/a",}'])
def test_what_is_no_json_is_shown(item: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_lora_modules([item])

    message = f"Invalid JSON format for --lora-modules: {item}; write name=path or a JSON object"
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "item",
    [
        "[1]",
        "5",
        '{"name": "sql"}',
        '{"path": "/a"}',
        '{"name": "sql", "path": ""}',
        '{"name": 5, "path": "/a"}',
        '{"name": "sql", "path": "/a", "rank": 8}',
        '{"name": "sql", "path": "/a", "base_model_name": 5}',
    ],
)
def test_wrong_fields_are_shown(item: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"^Invalid fields for --lora-modules: ") as caught:
        parse_lora_modules([item])

    assert item in str(caught.value)


@pytest.mark.parametrize("item", ["=/a", "sql="])
def test_half_a_pair_is_refused(item: str) -> None:
    with pytest.raises(ConfigInvalid, match="must look like name=path"):
        parse_lora_modules([item])


def test_a_folder_with_a_config_is_good_enough_before_loading(adapter_folder: Path) -> None:
    refuse_missing_folders([LoRAModule("sql", str(adapter_folder))])


def test_a_folder_in_the_home_is_found(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(adapter_folder.parent))

    refuse_missing_folders([LoRAModule("sql", "~/sql")])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nope", "there is no such folder"),
        ("roots", "the folder has no adapter_config.json"),
        ("roots/sql/adapter_config.json", "there is no such folder"),
        ("x" * 300, "the folder cannot be read: "),
    ],
)
def test_what_cannot_be_an_adapter_is_named_as_it_was_given(adapter_folder: Path, path: str, reason: str) -> None:
    module = LoRAModule("sql", str(adapter_folder.parent.parent / path))

    with pytest.raises(ConfigInvalid) as caught:
        refuse_missing_folders([module])

    assert str(caught.value).startswith(f"--lora-modules sql={module.path}: {reason}")
