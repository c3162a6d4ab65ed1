"""Principal: who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from loramux.server.access.name_glob import NameGlob

Scope = Literal["infer", "admin", "metrics"]

ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """How much one key may ask for; None is no limit. New adapters are names that are not in memory."""

    requests_per_minute: int | None = None
    new_adapters_per_minute: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller, known by the key that was sent; `id` is what hooks and logs see, None where no key is needed.

    `adapters` is None where every adapter may be used. An adapter of the name that an alias stands for is what counts.
    """

    id: str | None
    scopes: frozenset[Scope] = ALL_SCOPES
    adapters: tuple[NameGlob, ...] | None = None
    may_use_base: bool = True
    limits: KeyLimits = KeyLimits()

    def allows(self, adapter_name: str) -> bool:
        """Whether it may use the adapter of this name; aliases are not names of adapters."""
        return self.adapters is None or any(glob.matches(adapter_name) for glob in self.adapters)


ANONYMOUS = Principal(None)
"""Everybody, where the server asks for no key."""
