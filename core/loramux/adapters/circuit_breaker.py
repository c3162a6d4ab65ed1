"""CircuitBreaker: a source that fails again and again is left alone for a while, instead of making everybody wait."""

from __future__ import annotations

import random
from collections.abc import Callable

NUM_FAILURES_TO_OPEN = 5  # in a row
FIRST_OPEN_SECONDS = 5.0
LONGEST_OPEN_SECONDS = 60.0


class CircuitBreaker:
    """Closed, open, or half open: then one probe is let through, and its outcome decides. For one event loop."""

    def __init__(self, clock: Callable[[], float], *, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._num_failures = 0
        self._open_seconds = FIRST_OPEN_SECONDS
        self._opens_until: float | None = None
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are turned away now, but for a probe."""
        return self._opens_until is not None

    def seconds_to_wait(self) -> float:
        """Return 0 when a call may be made now, else in how many seconds one may."""
        if self._opens_until is None:
            return 0.0
        remaining = self._opens_until - self._clock()
        if remaining <= 0 and not self._is_probing:
            return 0.0
        return max(remaining, 1.0)

    def begin(self) -> None:
        """Note that a call is made; the first one after an open time is the probe."""
        if self._opens_until is not None:
            self._is_probing = True

    def succeed(self) -> None:
        """Close: the source answered, be it with "no"."""
        self._num_failures = 0
        self._open_seconds = FIRST_OPEN_SECONDS
        self._opens_until = None
        self._is_probing = False

    def fail(self) -> None:
        """Count a failure; open at the fifth in a row, and for twice as long after a probe that failed."""
        self._num_failures += 1
        if self._is_probing:
            self._open_seconds = min(self._open_seconds * 2, LONGEST_OPEN_SECONDS)
        elif self._num_failures < NUM_FAILURES_TO_OPEN:
            return
        self._is_probing = False
        self._opens_until = self._clock() + self._open_seconds * (1 + 0.1 * self._jitter())

    def abandon(self) -> None:
        """The call was given up by its caller: nothing was learnt."""
        self._is_probing = False
