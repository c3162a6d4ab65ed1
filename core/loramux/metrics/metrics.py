"""Metrics: everything that one server counts and measures, and how a scrape gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_CONTENT_TYPE
from prometheus_client.registry import Collector

from loramux.metrics.adapter_labels import MAX_ADAPTER_LABELS, AdapterLabels
from loramux.metrics.adapter_series import AdapterSeries
from loramux.metrics.connection_series import ConnectionSeries
from loramux.metrics.gauges import gauges
from loramux.metrics.request_series import RequestSeries
from loramux.metrics.state import ServerState

LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_OPENMETRICS_UNESCAPED = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
"""Our names need no escaping; in every other one prometheus_client 0.26 writes their colons as underscores."""


@dataclass(frozen=True, slots=True)
class Exposition:
    """The answer to one scrape."""

    body: bytes
    content_type: str


class Metrics:
    """One server's figures, in a registry of their own: two servers in one process never mix theirs."""

    def __init__(self, *, max_adapter_labels: int = MAX_ADAPTER_LABELS) -> None:
        self._registry = CollectorRegistry()
        self.turn_to_expose = asyncio.Lock()
        self.requests = RequestSeries(self._registry, AdapterLabels(max_adapter_labels))
        self.adapters = AdapterSeries(self._registry)
        self.connections = ConnectionSeries(self._registry)
        self.event_loop_lag = Histogram(
            "loramux:event_loop_lag_seconds",
            "How late the event loop runs what is due.",
            buckets=LAG_BUCKETS,
            registry=self._registry,
        )

    def expose(self, state: ServerState, accept: str = "") -> Exposition:
        """Write everything down in the format that an Accept header asks for. Takes long; for any thread."""
        collector = _Collector(self._registry, state)
        try:
            encode, content_type = choose_encoder(accept)
            if content_type.startswith("application/openmetrics-text"):
                encode, _ = choose_encoder(_OPENMETRICS_UNESCAPED)
                content_type = OPENMETRICS_CONTENT_TYPE
            return Exposition(encode(collector), content_type)
        except (ValueError, TypeError):  # a version or an escaping that nobody has heard of
            return Exposition(generate_latest(collector), CONTENT_TYPE_PLAIN_0_0_4)

    def families(self, state: ServerState) -> Iterator[Metric]:
        """Give all metrics, in no format yet."""
        return _Collector(self._registry, state).collect()


class _Collector(Collector):
    """What was observed up to now, with one look at the server."""

    def __init__(self, registry: CollectorRegistry, state: ServerState) -> None:
        self._registry = registry
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from gauges(self._state)
