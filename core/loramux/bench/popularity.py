"""Popularity: how the requests of a load are spread over its adapters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from loramux.bench.grammar import read_positive, split_spec

ACCEPTED_POPULARITY = "identical, distinct, uniform, skewed or zipf:ALPHA with ALPHA above 0"
SKEWED_SHARE = 0.5

Kind = Literal["identical", "distinct", "uniform", "skewed", "zipf"]


@dataclass(frozen=True, slots=True)
class Popularity:
    """identical: the first adapter gets every request. distinct: the adapters take turns. uniform: each request draws.

    skewed: the first one gets half of the requests, the others share the rest evenly. zipf: the one at place k, from 1,
    is drawn in proportion to 1 / k ** alpha.
    """

    kind: Kind
    alpha: float = 1.0

    def choose(self, num_requests: int, num_adapters: int, source: random.Random) -> list[int]:
        """Return the place of each request's adapter, from 0."""
        match self.kind:
            case "identical":
                return [0] * num_requests
            case "distinct":
                return [number % num_adapters for number in range(num_requests)]
            case _:
                cumulative = list(accumulate(self.weights(num_adapters)))
                return source.choices(range(num_adapters), cum_weights=cumulative, k=num_requests)

    def weights(self, num_adapters: int) -> Sequence[float]:
        """Return how likely each adapter is, relative to the others, where each request draws."""
        match self.kind:
            case "zipf":
                return [place**-self.alpha for place in range(1, num_adapters + 1)]
            case "skewed" if num_adapters > 1:
                return [SKEWED_SHARE, *[(1 - SKEWED_SHARE) / (num_adapters - 1)] * (num_adapters - 1)]
            case _:
                return [1.0] * num_adapters


def parse_popularity(setting: str, text: str) -> Popularity:
    """Read a popularity as it is written on the command line; raises ConfigInvalid."""
    counts = {"identical": (0,), "distinct": (0,), "uniform": (0,), "skewed": (0,), "zipf": (1,)}
    kind, numbers = split_spec(setting, text, counts, ACCEPTED_POPULARITY)
    if kind == "zipf":
        return Popularity("zipf", read_positive(setting, text, numbers[0], ACCEPTED_POPULARITY))
    return Popularity(kind)  # type: ignore[arg-type]  # one of the keys above
