from __future__ import annotations

import asyncio
import re

import pytest

from loramux.server.observing import event_loop_lag
from loramux.server.observing.event_loop_lag import INTERVAL_SECONDS, EventLoopLag


class ClockLoop(asyncio.SelectorEventLoop):
    """A loop whose time a test moves."""

    now = 100.0

    def time(self) -> float:
        return self.now


def test_the_lag_is_how_much_later_than_due_the_loop_came() -> None:
    loop = ClockLoop()
    seen: list[float] = []
    lag = EventLoopLag(loop, seen.append)

    for late in (0.0, 0.25, 0.0):
        loop.now += INTERVAL_SECONDS + late
        loop.call_soon(loop.stop)
        loop.run_forever()
    lag.stop()
    loop.close()

    assert [round(value, 6) for value in seen] == [0.0, 0.25, 0.0]


async def test_a_served_application_measures_its_loop(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop_lag, "INTERVAL_SECONDS", 0.0)
    client = await start()

    text = (await client.get("/metrics")).text

    (count,) = re.findall(r"^loramux:event_loop_lag_seconds_count (\S+)", text, re.MULTILINE)
    assert float(count) >= 1
