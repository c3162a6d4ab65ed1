"""ConnectionSeries: how many connections are open, and how many were sent away."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

ConnectionLimit = Literal["server", "client"]
"""What was reached: the limit of all connections, or that of one client's."""


class ConnectionSeries:
    """For the event loop's thread; a scrape may read at any time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("loramux:open_connections", "Connections that are open now.", registry=registry)
        self._refused = Counter(
            "loramux:refused_connections", "Connections that were one too many.", ("limit",), registry=registry
        )
        for limit in ("server", "client"):  # so that the first refusal is an increase
            self._refused.labels(limit)

    def count_opened(self) -> None:
        """Count a connection that was let in."""
        self._open.inc()

    def count_closed(self) -> None:
        """Count one that was let in and has ended."""
        self._open.dec()

    def count_refused(self, limit: ConnectionLimit) -> None:
        """Count one that was sent away."""
        self._refused.labels(limit).inc()
