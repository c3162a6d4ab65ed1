"""FairQueue: the waiting requests in the order in which they are admitted, so that no tenant crowds out another.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), with tokens as the cost. A request's start tag is where its
tenant's last one ends, but never before the virtual time, which is the start tag of the latest admission. So of
tenants that all keep requests waiting each gets as many tokens as the other, within one request; a tenant alone is
served in order of arrival; and whoever was idle has saved up nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from loramux.engine.request import Request


@dataclass(slots=True)
class _Tenant:
    """Virtual times at which all that it has queued, and all that was admitted of that, comes to its end."""

    queued_until: float = 0
    admitted_until: float = 0
    num_waiting: int = 0


class FairQueue:
    """Waiting requests; iterating gives them in the order of their turn. Not thread-safe."""

    def __init__(self) -> None:
        self._resumed: list[Request] = []  # the next one last
        self._queued: list[tuple[float, int, Request]] = []  # start tag, arrival; sorted
        self._tags: dict[Request, tuple[float, int]] = {}
        self._tenants: dict[str | None, _Tenant] = {}
        self._virtual_time: float = 0
        self._num_arrivals = 0

    def __len__(self) -> int:
        return len(self._resumed) + len(self._queued)

    def __iter__(self) -> Iterator[Request]:
        return chain(reversed(self._resumed), (request for _start, _arrival, request in self._queued))

    @property
    def num_tenants(self) -> int:
        """How many tenants something is remembered of."""
        return len(self._tenants)

    def push(self, request: Request) -> None:
        """Queue a request behind those of its tenant."""
        tenant = self._tenants.setdefault(request.tenant, _Tenant())
        start = max(self._virtual_time, tenant.queued_until)
        tenant.queued_until = start + request.max_num_tokens
        tenant.num_waiting += 1
        self._num_arrivals += 1
        self._tags[request] = (start, self._num_arrivals)
        insort(self._queued, (start, self._num_arrivals, request))

    def push_front(self, request: Request) -> None:
        """Take back a request that was admitted: it comes before all others, and is not counted again."""
        self._resumed.append(request)

    def admit(self, request: Request) -> None:
        """Take out a request whose turn it is; its tenant has had these tokens."""
        start = self._take_out(request)
        if start is None:
            return
        tenant = self._tenants[request.tenant]
        tenant.admitted_until = max(tenant.admitted_until, start + request.max_num_tokens)
        self._virtual_time = max(self._virtual_time, start)
        self._forget_idle()

    def remove(self, request: Request) -> None:
        """Take out a request that wants its turn no more; it costs its tenant nothing once nothing else waits."""
        if self._take_out(request) is not None:
            self._forget_idle()

    def _take_out(self, request: Request) -> float | None:
        """Take a request out and return its start tag, None for one that was admitted before."""
        tag = self._tags.pop(request, None)
        if tag is None:
            self._resumed.remove(request)
            return None
        del self._queued[bisect_left(self._queued, tag, key=lambda entry: entry[:2])]
        tenant = self._tenants[request.tenant]
        tenant.num_waiting -= 1
        return tag[0]

    def _forget_idle(self) -> None:
        if not self._queued:  # nobody competes: whatever was admitted stood in nobody's way
            self._tenants.clear()
            self._virtual_time = 0
            return
        for name, tenant in list(self._tenants.items()):
            if tenant.num_waiting == 0:
                tenant.queued_until = tenant.admitted_until
                if tenant.admitted_until <= self._virtual_time:
                    del self._tenants[name]
