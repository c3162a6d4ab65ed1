"""plugins/README.md: every hook is there under its exact signature, and its examples work."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loramux.lora import hookspecs
from loramux.lora.hookspecs import AdapterEvent, RequestRecord
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from loramux.lora.resolver import LoRAResolver, LoRAResolverRegistry
from loramux.lora.resolver_options import ResolverOptions
from plugin_cases import entry_point

README = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
HOOKS = {
    name: function
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if hasattr(function, "loramux_spec")
}


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    """All Python of the page, run from top to bottom."""
    names: dict[str, Any] = {"__name__": "readme"}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "plugins/README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def plugin(examples: dict[str, Any]) -> ModuleType:
    module = ModuleType("readme")
    vars(module).update(examples)
    return module


@pytest.fixture
def manager(plugin: ModuleType, tmp_path: Path) -> PluginManager:
    (tmp_path / "team--sql").mkdir()
    options = ResolverOptions.gather(flags=[f"readme.shelf={tmp_path}"], environment={})
    return PluginManager.start(PluginConfig(("readme",), options), [entry_point("readme", plugin)])


@pytest.fixture
def _unregistered() -> Iterator[None]:
    yield
    LoRAResolverRegistry.unregister_resolver("shelf")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_under_its_exact_signature(hook: str) -> None:
    signature = str(inspect.signature(HOOKS[hook])).replace("'", "")  # annotations are kept as text
    assert f"### `{hook}{signature}`\n" in README


def test_the_page_documents_no_hook_that_does_not_exist() -> None:
    assert set(re.findall(r"^### `(\w+)\(", README, re.MULTILINE)) == set(HOOKS)


def test_every_declarable_attribute_is_documented() -> None:
    public = {name for name in vars(LoRAResolver) if not name.startswith("_")}
    assert public - set(re.findall(r"^(?:\| |### )`(?:async )?(\w+)", README, re.MULTILINE)) == set()


def test_the_resolver_of_15_lines_finds_its_adapter(manager: PluginManager, tmp_path: Path) -> None:
    found = asyncio.run(manager.resolvers[0].resolver.resolve_lora("base", "team/sql"))
    assert found is not None
    assert found.lora_path == str(tmp_path / "team--sql")


def test_the_resolver_has_15_lines_besides_blank_ones(examples: dict[str, Any]) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 15


def test_the_example_of_authorize_guards_one_folder(manager: PluginManager) -> None:
    assert manager.hooks.authorize("finance", "finance/report")
    assert not manager.hooks.authorize("somebody", "finance/report")
    assert manager.hooks.authorize(None, "sql")


def test_the_example_of_adapter_event_counts(manager: PluginManager, examples: dict[str, Any]) -> None:
    manager.hooks.adapter_event(AdapterEvent("loaded", "sql", 1, "/sql"))
    assert examples["counts"]["loaded"] == 1


def test_the_example_of_request_finished_counts_tokens(manager: PluginManager, examples: dict[str, Any]) -> None:
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(RequestRecord))
    record = RequestRecord(**{**nothing, "principal": "finance", "num_prompt_tokens": 3, "num_completion_tokens": 4})

    manager.hooks.request_finished(record)

    assert examples["tokens_of"] == {"finance": 7}


def test_every_field_of_a_record_and_of_an_event_is_documented() -> None:
    for described in (RequestRecord, AdapterEvent):
        for field in dataclasses.fields(described):
            assert f"`{field.name}`" in README or f"`event.{field.name}`" in README, field.name


@pytest.mark.usefixtures("_unregistered")
def test_the_example_of_a_function_registers_its_resolver(examples: dict[str, Any]) -> None:
    manager = PluginManager.start(PluginConfig(), [entry_point("any", examples["register"])])
    assert [active.name for active in manager.resolvers] == ["shelf"]
