"""Lengths: how many tokens prompts and answers have."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from loramux.bench.grammar import read_count, read_positive, refusal, split_spec

ACCEPTED_LENGTHS = "a number of tokens, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX]"


@dataclass(frozen=True, slots=True)
class UniformLengths:
    """Every length from `low` to `high`, both included, is as likely as the others; a constant has both alike."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormalLengths:
    """Many short ones and a few long ones, as people write: the logarithm is normal, with `sigma` as its deviation."""

    median: int
    sigma: float
    longest: int | None = None

    def draw(self, source: random.Random) -> int:
        length = max(1, round(source.lognormvariate(math.log(self.median), self.sigma)))
        return length if self.longest is None else min(length, self.longest)


Lengths = UniformLengths | LogNormalLengths


def parse_lengths(setting: str, text: str) -> Lengths:
    """Read `64`, `uniform:LOW:HIGH` or `lognormal:MEDIAN:SIGMA[:MAX]`; raises ConfigInvalid."""
    if ":" not in text:
        constant = read_count(setting, text, text, ACCEPTED_LENGTHS)
        return UniformLengths(constant, constant)
    kind, numbers = split_spec(setting, text, {"uniform": (2,), "lognormal": (2, 3)}, ACCEPTED_LENGTHS)
    first = read_count(setting, text, numbers[0], ACCEPTED_LENGTHS)
    if kind == "uniform":
        high = read_count(setting, text, numbers[1], ACCEPTED_LENGTHS)
        if high < first:
            raise refusal(setting, text, "uniform:LOW:HIGH with LOW at most HIGH")
        return UniformLengths(first, high)
    sigma = read_positive(setting, text, numbers[1], ACCEPTED_LENGTHS)
    longest = read_count(setting, text, numbers[2], ACCEPTED_LENGTHS) if len(numbers) == 3 else None
    return LogNormalLengths(first, sigma, longest)
