"""ResolverPolicy: how the core treats one resolver, read from options that every resolver has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Self

from loramux.errors import ConfigInvalid

CORE_OPTIONS = ("timeout_seconds", "on_error", "revalidate", "unknown_seconds", "names")
"""Taken by the core, for every resolver; `from_config` never sees them."""

OnError = Literal["stop", "continue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverPolicy:
    """timeout_seconds: how long one question may take, retries included.

    on_error: whether a fault ends the search, so that no namesake answers during an outage, or the next one is asked.
    revalidate_seconds: after which time a served adapter is looked up again behind the scenes; None = never.
    unknown_seconds: for how long a name that it does not know is remembered as such; 0 = it is asked every time.
    names: globs of the names it is asked for; none = all.
    """

    timeout_seconds: float = 10.0
    on_error: OnError = "stop"
    revalidate_seconds: float | None = 300.0
    unknown_seconds: float = 30.0
    names: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, resolver: str, options: Mapping[str, str], *, unknown_seconds: float = 30.0) -> Self:
        """Read the core's own options of a resolver; raises ConfigInvalid. The rest are the resolver's defaults."""
        given: dict[str, object] = {"unknown_seconds": unknown_seconds}
        for option, value in options.items():
            where = f"resolver option {resolver}.{option}={value!r}"
            match option:
                case "timeout_seconds":
                    given[option] = _seconds(where, value)
                case "unknown_seconds":
                    given[option] = 0.0 if value == "0" else _seconds(where, value)
                case "on_error":
                    if value not in ("stop", "continue"):
                        raise ConfigInvalid(f"{where} must be stop or continue")
                    given[option] = value
                case "revalidate":
                    given["revalidate_seconds"] = _revalidate(where, value)
                case "names":
                    given[option] = tuple(part.strip() for part in value.split(",") if part.strip())
        return cls(**given)  # type: ignore[arg-type]  # each value was just read as what its field is

    def is_asked_for(self, lora_name: str) -> bool:
        """Whether this resolver may own the name."""
        return not self.names or any(fnmatchcase(lora_name, glob) for glob in self.names)


def _revalidate(where: str, value: str) -> float | None:
    if value == "never":
        return None
    if value == "always":
        return 0.0
    if value.startswith("ttl:"):
        return _seconds(where, value.removeprefix("ttl:"))
    raise ConfigInvalid(f"{where} must be never, always or ttl:SECONDS")


def _seconds(where: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigInvalid(f"{where} must be a number of seconds above 0")
    return number
