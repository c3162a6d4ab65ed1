"""LoadedPlugin: one entry point of group `loramux`, imported and checked; any fault is a PluginError."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from loramux.errors import PluginError
from loramux.lora import hookspecs
from loramux.lora.resolver import LoRAResolver, LoRAResolverRegistry

ENTRY_POINT_GROUP = "loramux"


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that can be called. Each has a hook manager of its own, so that none can disturb another."""

    name: str
    hooks: pluggy.HookRelay
    hook_names: tuple[str, ...]
    registered_resolvers: tuple[str, ...] = ()  # left in LoRAResolverRegistry by a function that was called
    option_names: tuple[str, ...] | None = None  # None: the plugin checks its options itself


def load_plugin(entry_point: EntryPoint) -> LoadedPlugin:
    """Import one entry point: a LoRAResolver subclass, a pluggy plugin, or a function that registers resolvers."""
    try:
        value = entry_point.load()
    except (Exception, SystemExit) as exc:  # an import may raise anything, and must not end the server
        raise PluginError(f"plugin {entry_point.name!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if inspect.isroutine(value):
        return _call_once(entry_point.name, value)
    return _register(entry_point.name, value)


def _register(name: str, plugin: object) -> LoadedPlugin:
    resolver_name = option_names = None
    if isinstance(plugin, type):
        if not issubclass(plugin, LoRAResolver):
            raise PluginError(f"plugin {name!r} is class {plugin.__name__}, which must derive from LoRAResolver")
        resolver_name = plugin.name
        option_names = None if plugin.option_names is None else tuple(plugin.option_names)
    manager = _new_hook_manager()
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as exc:
        raise PluginError(f"plugin {name!r} does not match the hooks: {' '.join(str(exc).split())}") from exc
    hook_names = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or []))
    if not hook_names:
        raise PluginError(f"plugin {name!r} implements no hook of loramux")
    return LoadedPlugin(resolver_name or name, manager.hook, hook_names, option_names=option_names)


def _call_once(name: str, function: Callable[[], Any]) -> LoadedPlugin:
    before = set(LoRAResolverRegistry.get_supported_resolvers())
    try:
        function()
    except (Exception, SystemExit) as exc:  # a plugin's code may raise anything
        for resolver_name in set(LoRAResolverRegistry.get_supported_resolvers()) - before:
            LoRAResolverRegistry.unregister_resolver(resolver_name)
        raise PluginError(f"plugin {name!r} failed when it was called: {type(exc).__name__}: {exc}") from exc
    registered = tuple(item for item in LoRAResolverRegistry.get_supported_resolvers() if item not in before)
    if not registered:
        raise PluginError(f"plugin {name!r} is a function that registered no resolver with LoRAResolverRegistry")
    return LoadedPlugin(name, _new_hook_manager().hook, (), registered)


def _new_hook_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("loramux")
    manager.add_hookspecs(hookspecs)
    return manager
