"""Flights: the work under way for each name, one at a time, owned here and by no caller.

Who waits may leave at any moment without taking anything from the others, and an outcome is a value: nobody may be left
to catch an error, and many may have to raise it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loramux.adapters.retrying import NotAskedAgain
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterNotFound, LoramuxError, ResolverFailed

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Flight:
    """The work for one name; `is_resolution` tells a search from what an operator added by hand."""

    task: asyncio.Task[ServedAdapter | Exception]
    is_resolution: bool
    num_waiting: int = 0

    async def land(self) -> ServedAdapter:
        """Wait without ever cancelling the task, then return or raise its outcome."""
        self.num_waiting += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self.num_waiting -= 1
        if self.task.cancelled():
            raise ResolverFailed("the server is shutting down", retry_after_seconds=5)
        outcome = self.task.result()
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)  # every waiter raises the same object: keep its traceback short
        return outcome


def _is_surprising(error: LoramuxError) -> bool:
    """Whether a traceback helps: not for a refusal, nor for an outage that the resolver itself has reported."""
    if isinstance(error, ResolverFailed) and not isinstance(error, NotAskedAgain):
        return False
    return not isinstance(error.__cause__, LoramuxError)


class Flights:
    """All flights by name. Every one ends within `limit_seconds`. For one event loop."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._by_name: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Flight | None:
        """Return the work under way for a name."""
        return self._by_name.get(name)

    def start(self, name: str, work: Callable[[str], Awaitable[ServedAdapter]], *, is_resolution: bool) -> Flight:
        """Begin the work for a name that has none under way."""
        assert name not in self._by_name
        flight = Flight(asyncio.create_task(self._fly(name, work), name=f"adapter {name}"), is_resolution)
        self._by_name[name] = flight
        # Registered before any waiter, so it runs before them: none ever sees a flight that has ended.
        flight.task.add_done_callback(lambda _: self._by_name.pop(name))
        return flight

    def abandon_one(self) -> bool:
        """Cancel a search that nobody waits for any more, to make a place; False when there is none."""
        for flight in self._by_name.values():
            if flight.is_resolution and flight.num_waiting == 0 and not flight.task.cancelling():
                flight.task.cancel()
                return True
        return False

    async def close(self) -> None:
        """Cancel all, and wait for them; whoever waits gets ResolverFailed."""
        tasks = [flight.task for flight in self._by_name.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, name: str, work: Callable[[str], Awaitable[ServedAdapter]]) -> ServedAdapter | Exception:
        try:
            async with asyncio.timeout(self._limit_seconds):
                return await work(name)
        except AdapterNotFound as exc:
            return exc
        except TimeoutError:
            logger.warning("adapter given up adapter=%s seconds=%g", name, self._limit_seconds)
            return ResolverFailed(f"adapter {name!r} was not there within {self._limit_seconds:g} s")
        except LoramuxError as exc:
            cause = exc.__cause__ if _is_surprising(exc) else None
            logger.warning("adapter not available adapter=%s: %s", name, exc, exc_info=cause)
            return exc
        except Exception as exc:
            logger.exception("adapter failed adapter=%s", name)
            return exc
