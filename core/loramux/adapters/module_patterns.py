r"""ModulePatterns: which key of rank_pattern or alpha_pattern holds for a module, by PEFT's rule.

PEFT takes the first key, in the order of the file, for which `re.match(rf"(.*\.)?({key})$", module)` holds. Keys come
from strangers and Python's `re` backtracks, so it is not used here. Literal keys are compared as suffixes. Others must
be in a small grammar: literals, `.`, `.*`, `.+`, `\d` and `[0-9]`, both with `+`, groups with `|`, `^`, `$`. They are
matched by carrying the set of all positions reached, as bits of an integer, through the steps of the key: linear.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_KEYS = 512
MAX_KEY_NBYTES = 256
MAX_GROUP_DEPTH = 8
MAX_STEPS = 2_000_000  # keys' steps times modules: about a second
_LITERAL_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_DIGITS = re.compile(r"(?:\\d|\[([0-9])-([0-9])\])(\+?)")
_ANY = re.compile(r"\.(?:([*+])\??)?")  # a lazy run reaches the same positions as a greedy one
_TEXT = re.compile(r"(?:[^\\.^$*+?{}\[\]|()]|\\[^A-Za-z0-9])+")


class PatternRefused(ValueError):
    """A key is outside the grammar, or all of them together are too much work; `key` is the one to name."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True, slots=True)
class ModulePatterns:
    """The keys of one pattern field, in the order of the file."""

    literal_places: Mapping[str, int]
    compiled: tuple[tuple[int, str, _Choice], ...]
    num_steps: int

    @classmethod
    def compile(cls, keys: Collection[str]) -> ModulePatterns:
        """Compile all keys; raises PatternRefused."""
        literal_places: dict[str, int] = {}
        compiled: list[tuple[int, str, _Choice]] = []
        num_steps = 0
        for place, key in enumerate(keys):
            if place >= MAX_KEYS or not key.isascii() or len(key) > MAX_KEY_NBYTES:
                raise PatternRefused(key)
            if _LITERAL_KEY.fullmatch(key):
                literal_places[key] = place
            else:
                parser = _Parser(key)
                compiled.append((place, key, parser.parse()))
                num_steps += parser.num_steps
        return cls(literal_places, tuple(compiled), num_steps)

    def winning_keys(self, modules: Collection[str]) -> dict[str, str]:
        """Return, for each module that any key matches, the first such key; raises PatternRefused if it takes long."""
        if self.num_steps * len(modules) > MAX_STEPS:
            raise PatternRefused(self.compiled[0][1])
        if not self.literal_places and not self.compiled:
            return {}
        found = ((module, self._winning_key(module)) for module in modules)
        return {module: key for module, key in found if key is not None}

    def _winning_key(self, module: str) -> str | None:
        literal = min(
            (suffix for suffix in _suffixes(module) if suffix in self.literal_places),
            key=self.literal_places.__getitem__,
            default=None,
        )
        for place, key, pattern in self.compiled:
            if literal is not None and self.literal_places[literal] < place:
                break
            if _matches(pattern, module):
                return key
        return literal


def _suffixes(module: str) -> Iterable[str]:
    yield module
    start = module.find(".")
    while start >= 0:
        yield module[start + 1 :]
        start = module.find(".", start + 1)


def _matches(pattern: _Choice, module: str) -> bool:
    starts = 1  # the optional `(.*\.)` in front: position 0, or behind any dot
    for position, character in enumerate(module, start=1):
        if character == ".":
            starts |= 1 << position
    return bool(pattern.advance(module, starts) >> len(module) & 1)


class _Step(Protocol):
    def advance(self, module: str, positions: int) -> int:
        """Return the set of positions reachable by this step from any of the given positions."""
        ...


@dataclass(frozen=True, slots=True)
class _Text:
    text: str

    def advance(self, module: str, positions: int) -> int:
        reached = 0
        start = module.find(self.text)
        while start >= 0:
            if positions >> start & 1:
                reached |= 1 << (start + len(self.text))
            start = module.find(self.text, start + 1)
        return reached


@dataclass(frozen=True, slots=True)
class _AnyCharacters:
    minimum: int
    is_run: bool

    def advance(self, module: str, positions: int) -> int:
        inside = (1 << (len(module) + 1)) - 1
        moved = (positions << self.minimum) & inside
        if not self.is_run or not moved:
            return moved
        lowest = moved & -moved
        return inside & ~(lowest - 1)


@dataclass(frozen=True, slots=True)
class _Digits:
    accepted: str
    is_run: bool

    def advance(self, module: str, positions: int) -> int:
        digits = sum(1 << place for place, character in enumerate(module) if character in self.accepted)
        reached = moved = (positions & digits) << 1
        while self.is_run and moved:
            moved = (moved & digits) << 1
            reached |= moved
        return reached


@dataclass(frozen=True, slots=True)
class _Anchor:
    is_start: bool

    def advance(self, module: str, positions: int) -> int:
        return positions & (1 if self.is_start else 1 << len(module))


@dataclass(frozen=True, slots=True)
class _Choice:
    alternatives: tuple[tuple[_Step, ...], ...]

    def advance(self, module: str, positions: int) -> int:
        reached = 0
        for steps in self.alternatives:
            current = positions
            for step in steps:
                current = step.advance(module, current)
            reached |= current
        return reached


class _Parser:
    """Recursive descent over one key; `num_steps` is the price of matching it once."""

    def __init__(self, key: str) -> None:
        self.num_steps = 0
        self._key = key
        self._place = 0

    def parse(self) -> _Choice:
        choice = self._choice(depth=0)
        if self._place != len(self._key) or not self._key:
            raise PatternRefused(self._key)
        return choice

    def _choice(self, depth: int) -> _Choice:
        if depth > MAX_GROUP_DEPTH:
            raise PatternRefused(self._key)
        alternatives = [self._sequence(depth)]
        while self._take("|"):
            alternatives.append(self._sequence(depth))
        return _Choice(tuple(alternatives))

    def _sequence(self, depth: int) -> tuple[_Step, ...]:
        steps: list[_Step] = []
        while self._place < len(self._key) and self._key[self._place] not in "|)":
            steps.append(self._step(depth))
        self.num_steps += 1 + len(steps)
        return tuple(steps)

    def _step(self, depth: int) -> _Step:
        if self._take("("):
            if self._key.startswith("?", self._place) and not self._take("?:"):
                raise PatternRefused(self._key)
            choice = self._choice(depth + 1)
            if not self._take(")"):
                raise PatternRefused(self._key)
            return self._unrepeated(choice)
        if self._take("^"):
            return self._unrepeated(_Anchor(is_start=True))
        if self._take("$"):
            return self._unrepeated(_Anchor(is_start=False))
        if match := self._take_match(_ANY):
            return self._unrepeated(_AnyCharacters(minimum=int(match[1] != "*"), is_run=match[1] is not None))
        if match := self._take_match(_DIGITS):
            first, last = int(match[1] or 0), int(match[2] or 9)
            if first > last:
                raise PatternRefused(self._key)
            accepted = "".join(str(digit) for digit in range(first, last + 1))
            return self._unrepeated(_Digits(accepted, is_run=bool(match[3])))
        if match := self._take_match(_TEXT):
            return self._unrepeated(_Text(re.sub(r"\\(.)", r"\1", match[0])))
        raise PatternRefused(self._key)

    def _unrepeated(self, step: _Step) -> _Step:
        if self._place < len(self._key) and self._key[self._place] in "*+?{":
            raise PatternRefused(self._key)
        return step

    def _take(self, text: str) -> bool:
        if not self._key.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _take_match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        match = expression.match(self._key, self._place)
        if match:
            self._place = match.end()
        return match
