"""StopStrings: finds the stop string that ends a growing text, and what of the text might still be the start of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Where in the text a stop string stands."""

    stop_string: str
    start: int

    @property
    def end(self) -> int:
        """The index of the first character after it."""
        return self.start + len(self.stop_string)


class StopStrings:
    """The stop strings of one request, in the order given, and how far its text has grown into each."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._prefixes = [_OpenPrefix(stop_string) for stop_string in self._stop]

    def find(self, text: str, *, ends_after: int) -> StopMatch | None:
        """Find the match that starts first, the first listed among equals, of those that end after this index."""
        found: StopMatch | None = None
        for stop_string in self._stop:
            start = text.find(stop_string, max(0, ends_after - len(stop_string) + 1))
            if start >= 0 and (found is None or start < found.start):
                found = StopMatch(stop_string, start)
        return found

    def follow(self, piece: str) -> int:
        """Take the next piece of the text; return how many characters at its end a stop string may yet grow out of."""
        return max((prefix.follow(piece) for prefix in self._prefixes), default=0)


class _OpenPrefix:
    """The longest end of a growing text that is a proper start of one stop string, by Knuth, Morris and Pratt.

    The cost per character does not depend on the length of the stop string, which a client chooses.
    """

    __slots__ = ("_borders", "_length", "_stop_string")

    def __init__(self, stop_string: str) -> None:
        self._stop_string = stop_string
        self._length = 0
        # _borders[n]: the longest proper start of stop_string[:n] that is its end too.
        self._borders = [0, 0]
        for character in stop_string[1:]:
            self._borders.append(self._advance(self._borders[-1], character))

    def follow(self, piece: str) -> int:
        for character in piece:
            self._length = self._advance(self._length, character)
            if self._length == len(self._stop_string):
                self._length = self._borders[self._length]
        return self._length

    def _advance(self, length: int, character: str) -> int:
        while length and self._stop_string[length] != character:
            length = self._borders[length]
        return length + 1 if self._stop_string[length] == character else 0
