"""The requests now being answered, and how they end when the server does.

Every admitted request ends in one of these ways: by itself, because its client left, or with a refusal raised inside
it, so that it still can tell its client: when it has taken too long, or when the server stops and the grace period is
over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loramux.server.errors import Refused


class InFlight:
    """Count requests and bodies; lives on the event loop. `max_seconds` is what each admitted request may take."""

    def __init__(self, *, max_seconds: float | None = None) -> None:
        self._max_seconds = max_seconds
        self._is_over = False
        self._limits: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_ready = True
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._limits)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Hold a place while a request is answered; raises Refused once the server is stopping."""
        if self.is_draining:
            raise draining()
        async with self._hold(self._max_seconds):
            yield

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[None]:
        """Hold a place while a body is on its way, even once the server is stopping.

        A client that still sends may never see an answer, so it is heard out first, and refused then.
        """
        async with self._hold(None):
            yield

    @asynccontextmanager
    async def _hold(self, max_seconds: float | None) -> AsyncIterator[None]:
        limit = asyncio.timeout(max_seconds)
        try:
            async with limit:
                self._limits.add(limit)
                self._idle.clear()
                yield
        except TimeoutError:
            if limit.expired():
                raise (draining() if self._is_over else _too_long(max_seconds)) from None
            raise
        finally:
            self._limits.discard(limit)
            if not self._limits:
                self._idle.set()

    def stop_being_ready(self) -> None:
        """Let it be known that the server stops soon; requests are still admitted."""
        self.is_ready = False

    def stop_admitting(self) -> None:
        """Admit nobody from now on."""
        self.is_ready = False
        self.is_draining = True

    async def drain(self, *, grace_seconds: float, farewell_seconds: float) -> None:
        """Admit nobody, let the admitted finish, then end what is left; returns when nothing is in flight.

        `farewell_seconds` bounds how long a request may take to tell its client that it was ended.
        """
        self.stop_admitting()
        if await self._is_idle_within(grace_seconds):
            return
        self._is_over = True
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():  # who has been ended already, and is not out yet, cannot be ended again
                limit.reschedule(now)
        await self._is_idle_within(farewell_seconds)

    async def _is_idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


def draining() -> Refused:
    """What is said to who comes too late."""
    return Refused("server_draining", "The server is shutting down. Retry shortly.")


def _too_long(max_seconds: float | None) -> Refused:
    return Refused("request_timeout", f"The request took longer than {max_seconds:g} seconds.")
