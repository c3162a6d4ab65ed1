"""NameGlob: a pattern for the names of adapters, as keys and policies write it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NameGlob:
    """Matches whole names: `*` stands for anything within a segment, `**` also crosses `/`; all else is itself."""

    text: str
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = re.split(r"(\*+)", self.text)
        pattern = "".join(_WILDCARDS.get(part, re.escape(part)) for part in parts)
        object.__setattr__(self, "_pattern", re.compile(pattern))

    def matches(self, name: str) -> bool:
        """Whether this is one of the names meant."""
        return self._pattern.fullmatch(name) is not None


_WILDCARDS = {"*": "[^/]*", "**": ".*"}
