"""The loop that runs a tape: the team goes through all of its calls and meets after each."""

from __future__ import annotations

import functools
from typing import Any

from loramux_kernels.machine_numba import ask, call, count_at, count_up, ints, loop
from loramux_kernels.team import Loop

PATIENCE = 1 << 20  # looks at who is still to come, in some milliseconds, before the processor is offered
ARRIVED = 3  # the argument that counts arrivals


@functools.cache
def play() -> Loop:
    """Arguments: calls, int64 [num_items, 2], each a function and its arguments; 0; how to ask for the team's size,
    and how to give the processor away.

    Every thread runs every call, whose items they share out. Who waits for the others stays awake: a processor that is
    given away is not had back for a whole slice of time. Only where there are fewer processors than threads is it the
    others' only chance.
    """

    def play_loop(a: Any) -> None:
        calls = ints(a[2], 2 * a[1])
        num_threads = ask(a[4])
        expected = num_threads
        for i in range(a[1]):
            call(calls[2 * i], calls[2 * i + 1])
            count_up(a, ARRIVED)
            looks = 0
            while count_at(a, ARRIVED) < expected:
                looks += 1
                if looks % PATIENCE == 0:
                    ask(a[5])
            expected += num_threads

    return Loop(loop(play_loop))
