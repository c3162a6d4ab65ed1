"""What measuring costs: `python contrib/benchmarks/metrics.py`.

1. Counting a completion of 128 tokens, on the event loop, when it has ended.
2. A scrape with 1,000 adapters: its size, its time in its thread, and how late the event loop is meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

from rich.console import Console
from rich.table import Table

from loramux.metrics.metrics import Metrics
from loramux.metrics.request_series import FinishedCompletion
from loramux.metrics.state import EngineState, ServerState, TierState

NUM_ADAPTERS = 1_000
PROBE_SECONDS = 0.001
FORMATS = {"text": "", "OpenMetrics": "application/openmetrics-text; version=1.0.0"}


def main() -> int:
    """Print the table."""
    metrics = Metrics()
    _count_all(metrics)  # makes the series
    started = time.perf_counter()
    _count_all(metrics)
    microseconds = (time.perf_counter() - started) / NUM_ADAPTERS * 1e6
    table = Table("what", "MB", "seconds", "loop late, p99, ms", "loop late, most, ms")
    table.add_row("counting a completion", "", f"{microseconds / 1e6:.6f}", "", "")
    for name, accept in FORMATS.items():
        table.add_row(name, *asyncio.run(_scrape(metrics, accept)))
    Console().print(table)
    return 0


def _count_all(metrics: Metrics) -> None:
    for number in range(NUM_ADAPTERS):
        completion = FinishedCompletion(
            has_model=True,
            adapter_name=f"adapter-{number}",
            finish_reason="length",
            status=200,
            error_code="",
            seconds=1.0,
            queue_seconds=0.1,
            first_token_seconds=0.2,
            inter_token_seconds=[0.01] * 127,
            num_prompt_tokens=64,
            num_completion_tokens=128,
        )
        metrics.requests.count_completion(completion)


async def _scrape(metrics: Metrics, accept: str) -> tuple[str, str, str, str]:
    state = ServerState(base_model_name="base", engine=EngineState(), disk=TierState())
    late: list[float] = []
    probe = asyncio.create_task(_probe(late))
    started = time.perf_counter()
    exposition = await asyncio.to_thread(metrics.expose, state, accept)
    seconds = time.perf_counter() - started
    probe.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await probe
    late.sort()
    p99 = late[int(len(late) * 0.99)]
    return f"{len(exposition.body) / 1e6:.1f}", f"{seconds:.2f}", f"{p99 * 1000:.1f}", f"{late[-1] * 1000:.1f}"


async def _probe(late: list[float]) -> None:
    while True:
        started = time.perf_counter()
        await asyncio.sleep(PROBE_SECONDS)
        late.append(max(0.0, time.perf_counter() - started - PROBE_SECONDS))


if __name__ == "__main__":
    sys.exit(main())
