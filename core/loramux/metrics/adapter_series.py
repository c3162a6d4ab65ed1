"""AdapterSeries: how long adapters take on their way to a slot, and what the resolvers say."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram

from loramux.metrics.state import Transition

RESOLVER_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOAD_BUCKETS = (0.0005, 0.002, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ResolverStep(Protocol):
    """What one resolver said of one name."""

    @property
    def resolver(self) -> str: ...

    @property
    def verdict(self) -> str: ...

    @property
    def milliseconds(self) -> float: ...


class AdapterSeries:
    """May be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts = Counter(
            "loramux:resolver_verdicts",
            "What each resolver said of a name.",
            ("resolver", "verdict"),
            registry=registry,
        )
        self._resolver_seconds = Histogram(
            "loramux:resolver_seconds",
            "How long a resolver took to say so; for a remote one, with the download.",
            ("resolver",),
            buckets=RESOLVER_BUCKETS,
            registry=registry,
        )
        self._load_seconds = Histogram(
            "loramux:adapter_load_seconds",
            "How long an adapter took from one tier to the next.",
            ("transition",),
            buckets=LOAD_BUCKETS,
            registry=registry,
        )

    def count_step(self, step: ResolverStep) -> None:
        """Count what a resolver said; one that was not asked took no time."""
        self._verdicts.labels(step.resolver, step.verdict).inc()
        if step.verdict != "not asked":
            self._resolver_seconds.labels(step.resolver).observe(step.milliseconds / 1000)

    def observe_load(self, transition: Transition, seconds: float) -> None:
        """Take the time of one adapter's step to the next tier."""
        self._load_seconds.labels(transition).observe(seconds)
