"""The project's goals as ratios of what one run measured, each round by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from comparison.cases import CASES
from comparison.ceiling import ModelWork
from comparison.rounds import Measured

BASE_PEERS = ("transformers", "batching", "llama_cpp")
_CASES = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds' values, with the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return None where no round has a value."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


class RoundFigures:
    """One round's speeds and figures. A question about what was not measured raises KeyError."""

    def __init__(self, measured: Sequence[Measured], work: ModelWork) -> None:
        self._work = work
        self._speeds = {
            (one.case.name, one.system): one.tokens_per_second for one in measured if one.case.kind == "generate"
        }
        self._figures: dict[str, float] = {}
        for one in measured:
            self._figures.update(one.done.figures)

    def speed(self, case: str, system: str = "loramux") -> float:
        """Tokens per second."""
        return self._speeds[case, system]

    def best_speed(self, case: str, systems: Sequence[str]) -> float:
        """Tokens per second of the fastest of those systems that were run."""
        speeds = [self._speeds[case, system] for system in systems if (case, system) in self._speeds]
        if not speeds:
            raise KeyError(case)
        return max(speeds)

    def figure(self, name: str) -> float:
        """A figure of the machine or of the attention case."""
        return self._figures[name]

    def base_ceiling(self) -> float:
        """Tokens per second that the machine's GEMMs allow for the base case."""
        return self._work.batch_ceiling(
            _CASES["base"],
            gflops_few=self.figure("gflops_32"),
            gflops_many=max(self.figure("gflops_128"), self.figure("gflops_512")),
        )

    def one_request_ceiling(self) -> float:
        """Tokens per second that memory allows for one request in float32."""
        return self._work.one_request_ceiling(self.figure("read_gb"))


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio and its bound: `at_least`, or at most where that is False."""

    title: str
    value: Callable[[RoundFigures], float]
    bound: float
    at_least: bool = True

    def is_reached_by(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _over(case: str, other: str, system: str = "loramux") -> Callable[[RoundFigures], float]:
    return lambda figures: figures.speed(case) / figures.speed(other, system)


GOALS = (
    Goal(
        "base, 32 requests / best of transformers generate, its continuous batching, llama.cpp",
        lambda figures: figures.speed("base") / figures.best_speed("base", BASE_PEERS),
        1.3,
    ),
    Goal("base, 32 requests / ceiling", lambda figures: figures.speed("base") / figures.base_ceiling(), 0.65),
    Goal("one adapter r64 / own base", _over("one-adapter", "base"), 0.93),
    Goal("8 adapters mixed / own base", _over("eight-adapters", "base"), 0.9),
    Goal("32 adapters on 8 slots / own base", _over("many-adapters", "base"), 0.75),
    Goal("the same, 4 requests for each adapter / own base", _over("many-adapters-shared", "base"), 0.75),
    Goal("8 adapters mixed / PEFT mixed", _over("eight-adapters", "eight-adapters", "peft"), 3.0),
    Goal("base with room for adapters / without", _over("base-with-room", "base"), 0.98),
    Goal(
        "one request / memory reads ÷ weight bytes",
        lambda figures: figures.speed("one-request") / figures.one_request_ceiling(),
        0.8,
    ),
    Goal("one request / transformers generate", _over("one-request", "one-request", "transformers"), 2.0),
    Goal("one request, int8 / llama.cpp Q4_1", _over("one-request-int8", "one-request-int8", "llama_cpp"), 1.0),
    Goal(
        "attention's share of a step at 1,024 tokens, 32 requests",
        lambda figures: figures.figure("attention_share"),
        0.2,
        at_least=False,
    ),
    Goal(
        "the same, keys and values in 16 bits",
        lambda figures: figures.figure("attention_16_bit_share"),
        0.2,
        at_least=False,
    ),
)


def values_of(rounds: Mapping[int, RoundFigures], question: Callable[[RoundFigures], float]) -> list[float]:
    """One value for each round that measured what the question is about."""
    values = []
    for figures in rounds.values():
        try:
            values.append(question(figures))
        except KeyError:
            continue
    return values
