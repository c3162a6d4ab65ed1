"""NameGlob: a pattern for the names of adapters, as keys and policies write it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NameGlob:
    """Matches whole names: `*` stands for anything within a segment, `**` also crosses `/`; all else is itself.

    It takes as many steps as name and pattern have characters, multiplied: no name makes it try things twice.
    """

    text: str
    _parts: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", tuple(filter(None, re.split(r"(\*\*?)", self.text))))

    def matches(self, name: str) -> bool:
        """Whether this is one of the names meant."""
        ends = {0}  # where what was matched so far may end in the name
        for part in self._parts:
            match part:
                case "*":
                    ends = _within_segments(name, ends)
                case "**":
                    ends = set(range(min(ends), len(name) + 1))
                case _:
                    ends = {end + len(part) for end in ends if name.startswith(part, end)}
            if not ends:
                return False
        return len(name) in ends


def _within_segments(name: str, starts: Iterable[int]) -> set[int]:
    ends: set[int] = set()
    for start in starts:
        end = start
        while end not in ends:
            ends.add(end)
            if end < len(name) and name[end] != "/":
                end += 1
    return ends
