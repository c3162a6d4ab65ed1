"""Aliases: names that stand for another adapter, and can be moved from one version to the next and back."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from loramux.adapters.adapter_name import is_adapter_name
from loramux.errors import RequestInvalid


class _Unset(Enum):
    UNSET = "unset"


ANY_TARGET = _Unset.UNSET
"""As `expected`: whatever the alias stands for now."""


class Aliases:
    """Which name stands for which; an alias never stands for another alias. For one event loop."""

    def __init__(self) -> None:
        self._targets: dict[str, str] = {}

    def target_of(self, name: str) -> str:
        """Return what the name stands for: itself, unless it is an alias."""
        return self._targets.get(name, name)

    def __contains__(self, name: str) -> bool:
        return name in self._targets

    def items(self) -> Mapping[str, str]:
        """Return all aliases with their targets."""
        return dict(self._targets)

    def move(self, alias: str, target: str | None, *, expected: str | _Unset | None = ANY_TARGET) -> str | None:
        """Let an alias stand for `target`, or for nothing any more (None); return what it stood for before.

        `expected` is the target it must have now (None: it must not exist yet), so that of two who move it at once only
        one succeeds. Raises RequestInvalid, which changes nothing.
        """
        current = self._targets.get(alias)
        if expected is not ANY_TARGET and expected != current:
            raise RequestInvalid(
                f"The alias '{alias}' stands for {_shown(current)}, not for {_shown(expected)}.",
                param="expected_target",
                code="alias_conflict",
            )
        if target is None:
            self._targets.pop(alias, None)
            return current
        for param, name in (("alias", alias), ("target", target)):
            if not is_adapter_name(name):
                raise RequestInvalid(f"'{param}' is no name for an adapter: {name!r}.", param=param)
        if target in self._targets or target == alias or alias in self._targets.values():
            raise RequestInvalid(
                f"'{alias}' cannot stand for '{target}': an alias never stands for another alias.", param="target"
            )
        self._targets[alias] = target
        return current


def _shown(target: object) -> str:
    return "nothing" if target is None else f"'{target}'"
