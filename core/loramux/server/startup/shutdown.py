"""From the first signal to the end: no longer ready, then closed, then the last answers; each request gets an end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass

from loramux.errors import ConfigInvalid
from loramux.server.in_flight import InFlight
from loramux.server.startup.door import Door

FAREWELL_SECONDS = 2.0
"""How long a request whose time is over may take to say so."""

LATE_SECONDS = 0.25
"""How long a connection stays open for a request that is on its way; it is told to go elsewhere."""

LONGEST_SECONDS = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StopConfig:
    """drain_delay_seconds: how long SIGTERM leaves the door open for balancers to notice; SIGINT does not wait.

    grace_seconds: how long requests may go on after that.
    """

    drain_delay_seconds: float = 5.0
    grace_seconds: float = 60.0

    def __post_init__(self) -> None:
        for flag, seconds in (("--drain-delay", self.drain_delay_seconds), ("--grace", self.grace_seconds)):
            if not 0 <= seconds <= LONGEST_SECONDS:
                raise ConfigInvalid(f"{flag} must be from 0 to {LONGEST_SECONDS:g} seconds, got {seconds:g}")


def expect_signal() -> asyncio.Future[signal.Signals]:
    """Return what the first SIGINT or SIGTERM will be; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if first.done():
            os._exit(128 + number)
        first.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return first


async def stop_serving(door: Door, in_flight: InFlight, config: StopConfig, number: signal.Signals) -> None:
    """Close the door and let everybody inside finish; who takes too long is told so."""
    delay = config.drain_delay_seconds if number == signal.SIGTERM else 0.0
    logger.info(
        "stopping in_flight=%d: no new requests in %g seconds, %g more for the others; a second signal ends at once",
        len(in_flight),
        delay,
        config.grace_seconds,
    )
    in_flight.stop_being_ready()
    await asyncio.sleep(delay)
    in_flight.stop_admitting()
    await door.close()
    await in_flight.drain(grace_seconds=config.grace_seconds, farewell_seconds=FAREWELL_SECONDS)
    await asyncio.sleep(LATE_SECONDS)
