"""PluginManager: finds the installed plugins, creates their resolvers, and can say which are active and why not.

A broken plugin is reported by name and left out. Only two things keep the server from starting: a resolver that
`--lora-resolvers` asks for and that cannot be had, and options that a plugin refuses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata

from loramux.errors import ConfigInvalid, LoramuxError, PluginError
from loramux.lora.loaded_plugin import ENTRY_POINT_GROUP, LoadedPlugin, load_plugin
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.resolver import LoRAResolver, LoRAResolverRegistry
from loramux.lora.resolver_options import ResolverOptions
from loramux.lora.resolver_policy import CORE_OPTIONS, ResolverPolicy

logger = logging.getLogger(__name__)

NOT_CONFIGURED = "installed but not configured"


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """What the operator wants: these resolvers in this order (None: all that are configured), with these options."""

    resolver_names: tuple[str, ...] | None = None
    options: ResolverOptions = field(default_factory=ResolverOptions)


@dataclass(frozen=True, slots=True)
class ActiveResolver:
    """A resolver that takes part in the chain, under the name that operators know.

    `fingerprint` tells one configuration of it from another: what was stored under an older one does not count.
    """

    name: str
    resolver: LoRAResolver
    policy: ResolverPolicy = field(default_factory=ResolverPolicy)
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One line of `loramux plugins`; `reason` says why a plugin is not active, or why its resolver is not."""

    name: str
    distribution: str | None
    version: str | None
    is_active: bool = False
    reason: str = ""
    looks_in: str = ""
    hooks: tuple[str, ...] = ()


class PluginManager:
    """All plugins of this process. Create it before the event loop runs: importing plugins may be slow."""

    def __init__(self, config: PluginConfig, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        self._config = config
        self._plugins: list[LoadedPlugin] = []
        self._statuses: dict[str, PluginStatus] = {}
        self._left_out: list[PluginStatus] = []  # a second plugin of a name that is taken
        self._offers: dict[str, LoadedPlugin | None] = {}  # who creates the resolver; None: it was registered by code
        self._resolvers: dict[str, ActiveResolver] = {}
        self._obstacles: list[LoramuxError] = []
        for name in LoRAResolverRegistry.get_supported_resolvers():
            self._statuses[name] = PluginStatus(name, None, None)
            self._offers[name] = None
        found = metadata.entry_points(group=ENTRY_POINT_GROUP) if entry_points is None else entry_points
        for entry_point in sorted(found, key=lambda item: (item.name, item.dist.name if item.dist else "")):
            self._load(entry_point)
        for name in self._offers:
            self._activate(name)
        self._check_config()
        self.hooks = PluginHooks(self._plugins)

    @classmethod
    def start(cls, config: PluginConfig, entry_points: Iterable[metadata.EntryPoint] | None = None) -> PluginManager:
        """Load everything for a server; raises ConfigInvalid for what must keep it from starting."""
        manager = cls(config, entry_points)
        try:
            manager.check()
        except LoramuxError:
            manager.close()
            raise
        return manager

    def check(self) -> None:
        """Raise ConfigInvalid, the first one found, if anything must keep a server from starting."""
        if self._obstacles:
            raise self._obstacles[0]

    @property
    def resolvers(self) -> tuple[ActiveResolver, ...]:
        """The active resolvers in the order in which they are asked."""
        names = self._config.resolver_names
        if names is None:
            names = tuple(sorted(self._resolvers, key=lambda name: (self._resolvers[name].resolver.priority, name)))
        return tuple(self._resolvers[name] for name in names if name in self._resolvers)

    def report(self) -> list[PluginStatus]:
        """Return one status per plugin: active resolvers in the order they are asked, then the others by name."""
        order = {active.name: position for position, active in enumerate(self.resolvers)}
        return sorted(
            [*self._statuses.values(), *self._left_out],
            key=lambda status: (order.get(status.name, len(order)), not status.is_active, status.name),
        )

    def close(self) -> None:
        """Take back what plugin functions registered, so that plugins can be loaded again; resolvers stay usable."""
        for plugin in self._plugins:
            for name in plugin.registered_resolvers:
                LoRAResolverRegistry.unregister_resolver(name)
        self._plugins.clear()

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        dist = entry_point.dist
        status = PluginStatus(entry_point.name, dist.name if dist else None, dist.version if dist else None)
        try:
            plugin = load_plugin(entry_point)
        except PluginError as exc:
            self._add(replace(status, reason=str(exc)))
            logger.exception("plugin left out name=%s distribution=%s", status.name, status.distribution)
            return
        self._plugins.append(plugin)
        has_other_hooks = any(hook != "create_resolver" for hook in plugin.hook_names)
        status = replace(status, hooks=plugin.hook_names, is_active=has_other_hooks)
        for name in plugin.registered_resolvers or (plugin.name,):
            is_new = self._add(replace(status, name=name))
            if is_new and (plugin.registered_resolvers or "create_resolver" in plugin.hook_names):
                self._offers[name] = plugin

    def _add(self, status: PluginStatus) -> bool:
        holder = self._statuses.setdefault(status.name, status)
        if holder is status:
            return True
        reason = (
            f"the name {status.name!r} is taken by {holder.distribution or 'registered code'}; remove one of the two"
        )
        self._left_out.append(replace(status, reason=reason))
        logger.error("plugin left out name=%s distribution=%s: %s", status.name, status.distribution, reason)
        return False

    def _activate(self, name: str) -> None:
        listed = self._config.resolver_names
        if listed is not None and name not in listed:
            self._set(name, reason="not listed in --lora-resolvers")
            return
        try:
            active = self._create(name)
            looks_in = "" if active is None else active.resolver.describe()
        except ConfigInvalid as exc:
            self._obstacles.append(exc)
            self._set(name, reason=str(exc))
        except (Exception, SystemExit) as exc:  # a plugin call
            self._set(name, reason=f"cannot create its resolver: {type(exc).__name__}: {exc}")
            logger.exception("resolver left out name=%s", name)
        else:
            if active is None:
                self._set(name, reason=NOT_CONFIGURED + _options_of(self._offers[name]))
                return
            self._resolvers[name] = active
            self._statuses[name] = replace(self._statuses[name], is_active=True, looks_in=looks_in)

    def _create(self, name: str) -> ActiveResolver | None:
        given = self._config.options.of(name, self._statuses)
        options = {option: value for option, value in given.items() if option not in CORE_OPTIONS}
        core_options = {option: value for option, value in given.items() if option in CORE_OPTIONS}
        resolver = self._create_resolver(name, options)
        if resolver is None:
            return None
        policy = ResolverPolicy.from_options(name, core_options, unknown_seconds=resolver.unknown_seconds)
        return ActiveResolver(name, resolver, policy, _fingerprint(resolver, options))

    def _create_resolver(self, name: str, options: Mapping[str, str]) -> LoRAResolver | None:
        plugin = self._offers[name]
        if plugin is None or plugin.registered_resolvers:
            return LoRAResolverRegistry.get_resolver(name)
        _refuse_unknown_options(plugin, options)
        answers = plugin.hooks.create_resolver(options=options)  # pluggy leaves out None
        if not answers:
            return None
        if not isinstance(answers[0], LoRAResolver):
            raise PluginError(f"create_resolver returned {type(answers[0]).__name__}, which is no LoRAResolver")
        return answers[0]

    def _set(self, name: str, *, reason: str) -> None:
        self._statuses[name] = replace(self._statuses[name], reason=reason)

    def _check_config(self) -> None:
        installed = ", ".join(sorted(self._statuses)) or "none"
        for name in sorted(self._config.options.named_resolvers() - set(self._statuses)):
            self._obstacles.append(
                ConfigInvalid(f"options for resolver {name!r}: not installed; installed: {installed}")
            )
        listed = self._config.resolver_names or ()
        if len(set(listed)) < len(listed):
            self._obstacles.append(ConfigInvalid(f"--lora-resolvers {','.join(listed)} names a resolver twice"))
        left_out = {status.name: status.reason for status in self._left_out}
        for name in listed:
            if name in self._resolvers and name not in left_out:
                continue
            status = self._statuses.get(name)
            reason = left_out.get(name) or (status.reason if status else f"it is not installed; installed: {installed}")
            reason = reason or "it has no resolver"
            self._obstacles.append(ConfigInvalid(f"--lora-resolvers asks for {name!r}, but: {reason}"))


def _fingerprint(resolver: LoRAResolver, options: Mapping[str, str]) -> str:
    """Tell configurations apart without showing them: options may be secret."""
    described = repr((type(resolver).__module__, type(resolver).__qualname__, sorted(options.items())))
    return hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()


def _options_of(plugin: LoadedPlugin | None) -> str:
    return "" if plugin is None or not plugin.option_names else f"; options: {_listed(plugin.option_names)}"


def _refuse_unknown_options(plugin: LoadedPlugin, options: Mapping[str, str]) -> None:
    if plugin.option_names is None:
        return
    unknown = sorted(set(options) - set(plugin.option_names))
    if unknown:
        accepted = _listed(plugin.option_names) or "no options"
        raise ConfigInvalid(f"resolver {plugin.name} has no option {_listed(unknown)}; it has: {accepted}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
