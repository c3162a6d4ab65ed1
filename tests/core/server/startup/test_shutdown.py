from __future__ import annotations

import asyncio
import signal

import pytest
from aiohttp import web

from loramux.errors import ConfigInvalid
from loramux.server.in_flight import InFlight
from loramux.server.startup.door import Door, bind
from loramux.server.startup.shutdown import StopConfig, expect_signal, stop_serving


class Watch(InFlight):
    """Notes what a stopping server does, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[object] = []

    def stop_being_ready(self) -> None:
        super().stop_being_ready()
        self.steps.append("not ready")

    def stop_admitting(self) -> None:
        super().stop_admitting()
        self.steps.append("admits nobody")

    async def drain(self, *, grace_seconds: float, farewell_seconds: float) -> None:
        self.steps.append(("drained", grace_seconds))


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 7.0), (signal.SIGINT, 0.0)])
async def test_a_server_is_not_ready_first_then_closed_then_drained(
    monkeypatch: pytest.MonkeyPatch, runner: web.AppRunner, number: signal.Signals, delay: float
) -> None:
    watch = Watch()
    door = await Door.open(runner, bind("127.0.0.1", 0))

    async def sleep(seconds: float) -> None:
        watch.steps.append(seconds)

    monkeypatch.setattr("loramux.server.startup.shutdown.asyncio.sleep", sleep)
    await stop_serving(door, watch, StopConfig(drain_delay_seconds=7, grace_seconds=9), number)

    assert watch.steps[:4] == ["not ready", delay, "admits nobody", ("drained", 9)]


async def test_the_first_signal_is_what_the_server_stops_for() -> None:
    first = expect_signal()
    try:
        signal.raise_signal(signal.SIGTERM)

        assert await asyncio.wait_for(first, 1) == signal.SIGTERM
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)


@pytest.mark.parametrize("seconds", [-1, 3601, float("nan")])
def test_times_are_checked_before_the_start(seconds: float) -> None:
    with pytest.raises(ConfigInvalid, match="--drain-delay must be from 0 to 3600 seconds, got"):
        StopConfig(drain_delay_seconds=seconds)
    with pytest.raises(ConfigInvalid, match="--grace must be from 0 to 3600 seconds, got"):
        StopConfig(grace_seconds=seconds)
