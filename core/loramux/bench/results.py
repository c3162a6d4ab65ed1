"""What came of requests: one result each, and a summary of a run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loramux.bench.adapter_choice import BASE

Outcome = Literal["ok", "wrong_count", "refused", "failed"]
"""refused: there was no room now (429, 503). wrong_count: other than as many tokens as were asked for, or sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestResult:
    """One request as its client saw it; all times are seconds from when it was due, or since the piece before.

    An `inter_token_seconds` is the time between two pieces of the answer; a server that puts several tokens into one
    piece has fewer and longer ones. `ttft_seconds` None: nothing came.
    """

    number: int
    adapter: str | None
    outcome: Outcome
    due_seconds: float
    ttft_seconds: float | None
    latency_seconds: float
    inter_token_seconds: Sequence[float]
    num_prompt_tokens: int | None
    num_asked_tokens: int
    num_output_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of seconds, between the two nearest values."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """Return None where there is no value."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        hundredths = statistics.quantiles(values, n=100, method="inclusive")
        return cls(hundredths[49], hundredths[89], hundredths[98])


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in numbers; times and speeds count the requests that went well, and no others."""

    num_requests: int
    num_ok: int
    num_wrong_count: int
    num_refused: int
    num_failed: int
    seconds: float
    num_output_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    ttft_seconds: Percentiles | None
    inter_token_seconds: Percentiles | None
    latency_seconds: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All results of one load. `counts` is what the engine did meanwhile, where it ran in this process."""

    num_adapters: int
    seconds: float
    results: Sequence[RequestResult]
    counts: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether every request got what it asked for."""
        return all(result.outcome == "ok" for result in self.results)

    def summary(self) -> Summary:
        """Sum it up."""
        good = [result for result in self.results if result.outcome == "ok"]
        outcomes = Counter(result.outcome for result in self.results)
        num_output_tokens = sum(result.num_output_tokens for result in good)
        return Summary(
            num_requests=len(self.results),
            num_ok=len(good),
            num_wrong_count=outcomes["wrong_count"],
            num_refused=outcomes["refused"],
            num_failed=outcomes["failed"],
            seconds=self.seconds,
            num_output_tokens=num_output_tokens,
            output_tokens_per_second=num_output_tokens / self.seconds,
            requests_per_second=len(good) / self.seconds,
            ttft_seconds=Percentiles.of([r.ttft_seconds for r in good if r.ttft_seconds is not None]),
            inter_token_seconds=Percentiles.of([gap for result in good for gap in result.inter_token_seconds]),
            latency_seconds=Percentiles.of([result.latency_seconds for result in good]),
        )


def requests_per_adapter(results: Iterable[RequestResult]) -> dict[str, int]:
    """Count requests by adapter, the most popular first."""
    return dict(Counter(BASE if result.adapter is None else result.adapter for result in results).most_common())


def faults(runs: Iterable[Run]) -> list[str]:
    """Name what went wrong, the most frequent first, each with how often it did."""
    errors = Counter(result.error or result.outcome for run in runs for result in run.results if result.outcome != "ok")
    return [f"{number} x {error}" for error, number in errors.most_common()]
