"""LoRAResolver: what a plugin writes to find adapters; LoRAResolverRegistry: resolvers that code registers itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from loramux.errors import ConfigInvalid, PluginError
from loramux.lora.hookspecs import hookimpl
from loramux.lora.request import LoRARequest


class LoRAResolver(ABC):
    """Find the adapter behind a name that the server has not seen yet.

    Only `resolve_lora` must be written. `name` is what operators call the resolver (unset: the entry point's name).
    `option_names` are the options it takes: any other is refused by name (unset: `from_config` checks them itself).
    Where the operator gives no order, a smaller `priority` is asked earlier. `allowed_roots`, when set, are the only
    folders that answers may point into; the files are opened from there, and no symlink is followed. For
    `unknown_seconds` a name that the resolver does not know is not asked for again: 0 where asking costs nothing.
    """

    name: str | None = None
    option_names: Sequence[str] | None = None
    unknown_seconds: float = 30.0
    priority: int = 50
    allowed_roots: Sequence[str | Path] | None = None

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the adapter under the name that was asked for, with a local folder; None means "not mine".

        FileNotFoundError equals None; any other exception means "mine, but broken" and ends the search. All calls of
        one resolver run on one event loop of its own, never on the server's, for as long as the server runs.
        """

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> Self | None:
        """Build the resolver from its options; None means "not configured", ConfigInvalid stops the start."""
        if options:
            raise ConfigInvalid(f"{cls.__name__} takes no options, got {', '.join(sorted(options))}")
        return cls()

    def describe(self) -> str:
        """Say in one line where this resolver looks, for the start-up screen; never a secret."""
        return ", ".join(str(root) for root in self.allowed_roots or ())

    async def aclose(self) -> None:  # noqa: B027 - most resolvers hold nothing
        """Let go of connections; called once, on the resolver's own loop, when the server stops."""

    @classmethod
    @hookimpl
    def create_resolver(cls, options: Mapping[str, str]) -> LoRAResolver | None:
        """Answer the hook of the same name: a subclass is a plugin as it stands."""
        return cls.from_config(options)


class ResolverRegistry:
    """Resolvers that were registered by code instead of by configuration, in the order they came."""

    def __init__(self) -> None:
        self._resolvers: dict[str, LoRAResolver] = {}

    def get_supported_resolvers(self) -> list[str]:
        """Return the registered names."""
        return list(self._resolvers)

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        """Register a ready resolver; PluginError for a name that is taken or an object that is no LoRAResolver."""
        if resolver_name in self._resolvers:
            raise PluginError(f"resolver {resolver_name!r} is registered already; choose another name")
        if not isinstance(resolver, LoRAResolver):
            raise PluginError(f"resolver {resolver_name!r} must be a LoRAResolver, got {type(resolver).__name__}")
        self._resolvers[resolver_name] = resolver

    def unregister_resolver(self, resolver_name: str) -> None:
        """Forget a resolver; PluginError for an unknown name."""
        self.get_resolver(resolver_name)
        del self._resolvers[resolver_name]

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        """Return one resolver; PluginError for an unknown name."""
        if resolver_name not in self._resolvers:
            known = ", ".join(self._resolvers) or "none"
            raise PluginError(f"no resolver {resolver_name!r} is registered; registered are: {known}")
        return self._resolvers[resolver_name]


LoRAResolverRegistry = ResolverRegistry()
