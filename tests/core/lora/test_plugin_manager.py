"""Finding plugins: who is active, in which order, and what a broken one does to the others."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Self

import pytest

from loramux.errors import ConfigInvalid
from loramux.lora.hookspecs import hookimpl
from loramux.lora.plugin_manager import NOT_CONFIGURED, PluginConfig, PluginManager, PluginStatus
from loramux.lora.resolver import LoRAResolver, LoRAResolverRegistry
from loramux.lora.resolver_options import ResolverOptions
from plugin_cases import TableResolver, entry_point


class Early(TableResolver):
    priority = 1


class NeedsUrl(TableResolver):
    url = ""

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> Self | None:
        if options.get("url") == "wrong":
            raise ConfigInvalid("resolver option url='wrong' must be a URL")
        resolver = cls()
        resolver.url = options.get("url", "")
        resolver.allowed_roots = (resolver.url,)
        return resolver if resolver.url else None


class NamesItsOptions(NeedsUrl):
    option_names = ("url", "region")


class Crashing(TableResolver):
    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> Self | None:
        raise RuntimeError("no such driver")


@pytest.fixture(autouse=True)
def _leave_no_resolver_registered() -> Iterator[None]:
    yield
    for name in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.unregister_resolver(name)


def config(*names: str, **environment: str) -> PluginConfig:
    return PluginConfig(names or None, ResolverOptions.gather(environment=environment))


def names_of(manager: PluginManager) -> list[str]:
    return [active.name for active in manager.resolvers]


def status_of(manager: PluginManager, name: str) -> PluginStatus:
    return {status.name: status for status in manager.report()}[name]


def test_unset_all_configured_resolvers_are_asked_by_priority_then_name() -> None:
    points = [entry_point("b", TableResolver), entry_point("z", Early), entry_point("a", TableResolver)]
    assert names_of(PluginManager.start(config(), points)) == ["z", "a", "b"]


def test_a_list_activates_exactly_these_in_this_order() -> None:
    points = [entry_point("a", Early), entry_point("b", TableResolver), entry_point("c", TableResolver)]
    manager = PluginManager.start(config("c", "a"), points)
    assert names_of(manager) == ["c", "a"]
    assert status_of(manager, "b").reason == "not listed in --lora-resolvers"


def test_an_empty_list_activates_nothing() -> None:
    assert names_of(PluginManager.start(PluginConfig(()), [entry_point("a", TableResolver)])) == []


def test_options_reach_from_config() -> None:
    manager = PluginManager.start(config(LORAMUX_S3_URL="s3://bucket"), [entry_point("s3", NeedsUrl)])
    assert status_of(manager, "s3") == PluginStatus(
        "s3", "some-dist", "1.2", is_active=True, looks_in="s3://bucket", hooks=("create_resolver",)
    )


def test_a_resolver_without_its_configuration_is_reported_and_left_out() -> None:
    manager = PluginManager.start(config(), [entry_point("s3", NeedsUrl)])
    assert names_of(manager) == []
    assert status_of(manager, "s3").reason == NOT_CONFIGURED


def test_a_refused_option_stops_the_start() -> None:
    with pytest.raises(ConfigInvalid, match="url='wrong' must be a URL"):
        PluginManager.start(config(LORAMUX_S3_URL="wrong"), [entry_point("s3", NeedsUrl)])


def test_a_declared_name_replaces_the_entry_points() -> None:
    class Named(TableResolver):
        name = "bucket"

    assert names_of(PluginManager.start(config("bucket"), [entry_point("entry", Named)])) == ["bucket"]


class NoResolver:
    pass


class UnknownHook:
    @hookimpl
    def add_routes(self, app: object) -> None: ...


class UnknownArgument:
    @hookimpl
    def authorize(self, principal: str, password: str) -> bool:
        return True


class WrongProduct:
    @hookimpl
    def create_resolver(self, options: Mapping[str, str]) -> object:
        return "resolver"


def register_nothing() -> None: ...


def register_then_fail() -> None:
    LoRAResolverRegistry.register_resolver("half", TableResolver())
    raise RuntimeError("no credentials")


BROKEN = [
    (ImportError("No module named 'boto'"), "plugin 'broken' cannot be imported: ImportError: No module named 'boto'"),
    (SystemExit(3), "plugin 'broken' cannot be imported: SystemExit: 3"),
    (Crashing, "cannot create its resolver: RuntimeError: no such driver"),
    (NoResolver, "plugin 'broken' is class NoResolver, which must derive from LoRAResolver"),
    (ModuleType("empty"), "plugin 'broken' implements no hook of loramux"),
    (UnknownHook(), "plugin 'broken' does not match the hooks: unknown hook 'add_routes'"),
    (UnknownArgument(), "plugin 'broken' does not match the hooks: .*'password'"),
    (WrongProduct(), "cannot create its resolver: PluginError: create_resolver returned str, which is no LoRAResolver"),
    (register_nothing, "plugin 'broken' is a function that registered no resolver"),
    (register_then_fail, "plugin 'broken' failed when it was called: RuntimeError: no credentials"),
]


def broken_and_sound(value: object) -> list[EntryPoint]:
    return [entry_point("broken", value), entry_point("sound", TableResolver)]


@pytest.mark.parametrize(("value", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_plugin_is_reported_by_name_and_stops_nobody(
    value: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = PluginManager.start(config(), broken_and_sound(value))
    assert names_of(manager) == ["sound"]
    assert re.search(reason, status_of(manager, "broken").reason)
    assert "left out name=broken" in caplog.text


@pytest.mark.parametrize(("value", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_plugin_that_was_asked_for_stops_the_start(value: object, reason: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"--lora-resolvers asks for 'broken', but: {reason}"):
        PluginManager.start(config("sound", "broken"), broken_and_sound(value))


def test_a_function_that_failed_leaves_nothing_registered() -> None:
    PluginManager(config(), [entry_point("broken", register_then_fail)])
    assert LoRAResolverRegistry.get_supported_resolvers() == []


def test_asking_for_what_is_not_installed_shows_what_is() -> None:
    with pytest.raises(ConfigInvalid, match="asks for 's3', but: it is not installed; installed: a, b"):
        PluginManager.start(config("s3"), [entry_point("b", TableResolver), entry_point("a", TableResolver)])


def test_asking_for_what_is_not_configured_stops_the_start() -> None:
    with pytest.raises(ConfigInvalid, match=f"asks for 's3', but: {NOT_CONFIGURED}"):
        PluginManager.start(config("s3"), [entry_point("s3", NeedsUrl)])


def test_asking_twice_for_one_resolver_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="a,a names a resolver twice"):
        PluginManager.start(config("a", "a"), [entry_point("a", TableResolver)])


def test_options_for_a_resolver_that_is_not_installed_are_refused() -> None:
    options = ResolverOptions.gather(flags=["filesytem.root=/srv"], environment={})
    with pytest.raises(ConfigInvalid, match="options for resolver 'filesytem': not installed; installed: a"):
        PluginManager.start(PluginConfig(options=options), [entry_point("a", TableResolver)])


def test_the_survey_lists_what_would_stop_the_start() -> None:
    manager = PluginManager(config("s3", LORAMUX_S3_URL="wrong"), [entry_point("s3", NeedsUrl)])
    assert status_of(manager, "s3").reason == "resolver option url='wrong' must be a URL"


def two_of_one_name() -> list[EntryPoint]:
    return [entry_point("a", TableResolver, "zeta"), entry_point("a", Early, "alpha")]


def test_of_two_plugins_with_one_name_the_second_is_reported_and_left_out() -> None:
    manager = PluginManager.start(config(), two_of_one_name())
    assert [(status.distribution, status.reason) for status in manager.report()] == [
        ("alpha", ""),
        ("zeta", "the name 'a' is taken by alpha; remove one of the two"),
    ]
    assert isinstance(manager.resolvers[0].resolver, Early)


def test_a_name_that_two_plugins_have_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigInvalid, match="asks for 'a', but: the name 'a' is taken by alpha"):
        PluginManager.start(config("a"), two_of_one_name())


def register_two() -> None:
    LoRAResolverRegistry.register_resolver("one", TableResolver())
    LoRAResolverRegistry.register_resolver("two", TableResolver())


def test_a_function_is_called_once_and_its_resolvers_take_part() -> None:
    manager = PluginManager.start(config(), [entry_point("both", register_two, "pair")])
    assert names_of(manager) == ["one", "two"]
    assert status_of(manager, "two").distribution == "pair"


def test_after_close_the_same_plugins_load_again() -> None:
    PluginManager.start(config(), [entry_point("both", register_two)]).close()
    assert LoRAResolverRegistry.get_supported_resolvers() == []
    assert names_of(PluginManager.start(config("two"), [entry_point("both", register_two)])) == ["two"]


def test_resolvers_registered_by_code_take_part() -> None:
    LoRAResolverRegistry.register_resolver("by-code", TableResolver())
    manager = PluginManager.start(config(), [entry_point("a", TableResolver)])
    assert names_of(manager) == ["a", "by-code"]


class WithResolverAndMore:
    @hookimpl
    def create_resolver(self, options: Mapping[str, str]) -> LoRAResolver | None:
        return TableResolver({"from": options["url"]}) if options else None

    @hookimpl
    def authorize(self, adapter_name: str) -> bool:
        return adapter_name != "secret"


def test_a_pluggy_plugin_may_create_a_resolver() -> None:
    manager = PluginManager.start(config(LORAMUX_MORE_URL="x"), [entry_point("more", WithResolverAndMore())])
    assert names_of(manager) == ["more"]
    assert status_of(manager, "more").hooks == ("authorize", "create_resolver")


def test_the_other_hooks_of_a_plugin_work_without_its_resolver(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    manager = PluginManager.start(config(), [entry_point("more", WithResolverAndMore())])
    status = status_of(manager, "more")
    assert (status.is_active, status.reason) == (True, NOT_CONFIGURED)
    assert manager.hooks.authorize("somebody", "secret") is False


def test_refuses_a_misspelt_option_by_name_and_tells_the_right_ones():
    manager = PluginManager(config(LORAMUX_S3_ULR="x"), [entry_point("s3", NamesItsOptions)])

    with pytest.raises(ConfigInvalid, match="resolver s3 has no option ulr; it has: url, region"):
        manager.check()


def test_an_unconfigured_plugin_tells_which_options_it_takes():
    manager = PluginManager(config(), [entry_point("s3", NamesItsOptions)])

    assert status_of(manager, "s3").reason == f"{NOT_CONFIGURED}; options: url, region"
