"""The public plugin API: what code written for the seed page relies on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from loramux.errors import ConfigInvalid, PluginError
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver, LoRAResolverRegistry, ResolverRegistry


class SeedPageResolver(LoRAResolver):
    def __init__(self):  # type: ignore[no-untyped-def]  # as on the page
        self.local_path_format = "/adapters/{lora_name}"

    async def resolve_lora(self, base_model_name, lora_name):  # type: ignore[no-untyped-def]  # as on the page
        local_path = self.local_path_format.format(base_model_name=base_model_name, lora_name=lora_name)
        return LoRARequest(lora_name=lora_name, lora_path=local_path, lora_int_id=abs(hash(lora_name)))


@pytest.fixture
def registry() -> ResolverRegistry:
    return ResolverRegistry()


@pytest.fixture
def s3_resolver() -> Iterator[LoRAResolver]:
    yield SeedPageResolver()
    LoRAResolverRegistry.unregister_resolver("s3_resolver")


async def test_the_seed_pages_class_registers_and_resolves_as_it_is(s3_resolver: LoRAResolver) -> None:
    LoRAResolverRegistry.register_resolver("s3_resolver", s3_resolver)
    assert "s3_resolver" in LoRAResolverRegistry.get_supported_resolvers()
    found = await LoRAResolverRegistry.get_resolver("s3_resolver").resolve_lora("base", "sql-lora")
    assert found is not None
    assert found.lora_path == "/adapters/sql-lora"


def test_a_name_registers_once(registry: ResolverRegistry) -> None:
    registry.register_resolver("mine", SeedPageResolver())
    with pytest.raises(PluginError, match="'mine' is registered already"):
        registry.register_resolver("mine", SeedPageResolver())


def test_only_resolvers_register(registry: ResolverRegistry) -> None:
    with pytest.raises(PluginError, match="'mine' must be a LoRAResolver, got ABCMeta"):
        registry.register_resolver("mine", SeedPageResolver)  # type: ignore[arg-type]  # the mistake under test


def test_an_unknown_name_is_answered_with_the_known_ones(registry: ResolverRegistry) -> None:
    registry.register_resolver("mine", SeedPageResolver())
    with pytest.raises(PluginError, match="no resolver 'other' is registered; registered are: mine"):
        registry.get_resolver("other")


def test_a_class_without_from_config_is_created_without_arguments() -> None:
    assert isinstance(SeedPageResolver.from_config({}), SeedPageResolver)


def test_a_class_without_from_config_refuses_options_by_name() -> None:
    with pytest.raises(ConfigInvalid, match="SeedPageResolver takes no options, got url"):
        SeedPageResolver.from_config({"url": "s3://bucket"})


def test_allowed_roots_are_where_a_resolver_looks() -> None:
    resolver = SeedPageResolver()
    resolver.allowed_roots = ("/a", "/b")
    assert resolver.describe() == "/a, /b"


@pytest.mark.parametrize("module", ["loramux.lora", "loramux.lora.plugin_manager", "loramux.adapters.registry"])
def test_a_plugins_imports_never_load_torch(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
