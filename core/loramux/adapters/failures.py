"""Failures: what went wrong lately with which adapter, and what the resolvers had said of it; for operators."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from loramux.adapters.resolution import Trace, TraceStep
from loramux.errors import AdapterInvalid, AdapterLoading, EngineOverloaded, ResolverFailed

MAX_FAILURES = 50

Kind = Literal["invalid", "source failed", "still loading", "no room", "error"]


@dataclass(slots=True)
class Failure:
    """The same trouble with one adapter, which may have come many times; `at` is the last time, in Unix seconds."""

    adapter_name: str
    kind: Kind
    reason: str
    trace: Trace
    at: float
    count: int = 1

    @property
    def steps(self) -> Iterable[TraceStep]:
        """What each resolver, and then the engine, said the last time."""
        return tuple(self.trace.steps)


class Failures:
    """The last MAX_FAILURES different ones; what comes again is counted and takes no place from others.

    Unknown names are none: anybody can make them up. For one event loop.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._latest: OrderedDict[tuple[str, Kind, str], Failure] = OrderedDict()

    def note(self, adapter_name: str, error: Exception, trace: Trace | None = None) -> None:
        """Take note of an error; without a trace nobody but the engine was asked."""
        kind, reason = _kind_of(error), getattr(error, "reason", None) or str(error)
        key = (adapter_name, kind, reason)
        before = self._latest.pop(key, None)
        if trace is None:
            trace = Trace(adapter_name)
            trace.add("engine", "invalid" if kind == "invalid" else "failed", reason)
        count = 1 if before is None else before.count + 1
        self._latest[key] = Failure(adapter_name, kind, reason, trace, self._now(), count)
        if len(self._latest) > MAX_FAILURES:
            self._latest.popitem(last=False)

    def __iter__(self) -> Iterator[Failure]:
        """Give them, the latest first."""
        return iter([*reversed(self._latest.values())])


def _kind_of(error: Exception) -> Kind:
    match error:
        case AdapterInvalid():
            return "invalid"
        case ResolverFailed():
            return "source failed"
        case AdapterLoading():
            return "still loading"
        case EngineOverloaded():
            return "no room"
        case _:
            return "error"
