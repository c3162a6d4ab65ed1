"""ConnectionLimits: how many connections a server holds, how many of one client, and what is kept back for probes."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import Counter
from dataclasses import dataclass

from loramux.errors import EngineOverloaded
from loramux.metrics.connection_series import ConnectionLimit, ConnectionSeries

MAX_CONNECTIONS = 2000
MAX_CONNECTIONS_PER_CLIENT = 100

SPARE_CONNECTIONS = 8
"""How many more may be open when the server is full, each for one look at its health."""

LOG_SECONDS = 10.0
"""How far apart the log lines about refused connections are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """What a connection holds while it is open; a spare one is only for a look at the server's health."""

    client: str | None
    is_spare: bool


class ConnectionLimits:
    """Gives out places; belongs to the event loop."""

    def __init__(
        self,
        series: ConnectionSeries,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_per_client: int = MAX_CONNECTIONS_PER_CLIENT,
    ) -> None:
        self._series = series
        self._max_connections = max_connections
        self._max_per_client = max_per_client
        self._num_by_client: Counter[str | None] = Counter()
        self._num_regular = 0
        self._num_spare = 0
        self._num_untold = 0
        self._quiet_until = 0.0

    def take(self, address: str | None) -> Place:
        """Let in a connection from an address; raises EngineOverloaded where there is no place for it."""
        client = client_of(address)
        if client is not None and self._num_by_client[client] >= self._max_per_client:
            raise self.refuse("client", client)
        is_spare = self._num_regular >= self._max_connections
        if is_spare and self._num_spare >= SPARE_CONNECTIONS:
            raise self.refuse("server", client)
        if is_spare:
            self._num_spare += 1
        else:
            self._num_regular += 1
        self._num_by_client[client] += 1
        self._series.count_opened()
        return Place(client, is_spare)

    def give_back(self, place: Place) -> None:
        """Take back the place of a connection that has ended."""
        if place.is_spare:
            self._num_spare -= 1
        else:
            self._num_regular -= 1
        self._num_by_client[place.client] -= 1
        if not self._num_by_client[place.client]:
            del self._num_by_client[place.client]
        self._series.count_closed()

    def refuse(self, limit: ConnectionLimit, client: str | None) -> EngineOverloaded:
        """Count a connection that is sent away, and give what it is told; the log is told now and then."""
        self._series.count_refused(limit)
        self._num_untold += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            logger.warning(
                "connections refused num=%d since the last such line; the latest one client=%s: %s",
                self._num_untold,
                client or "loopback",
                f"all --max-connections {self._max_connections} are open"
                if limit == "server"
                else f"it has all its --max-connections-per-client {self._max_per_client}",
            )
            self._num_untold = 0
            self._quiet_until = now + LOG_SECONDS
        return EngineOverloaded("too many connections")


def client_of(address: str | None) -> str | None:
    """Say whom an address belongs to: an IPv4 address to one client, a /64 of IPv6, too, since one host has it all.

    None stands for loopback, whose clients are all who use this machine, a proxy maybe.
    """
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return None if ip.is_loopback else str(ipaddress.IPv6Network((int(ip), 64), strict=False))
        ip = ip.ipv4_mapped
    return None if ip.is_loopback else str(ip)
