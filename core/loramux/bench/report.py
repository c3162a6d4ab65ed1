"""The report: runs as one JSON document, and as the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from loramux.bench.environment import environment
from loramux.bench.plan import Plan
from loramux.bench.replay import Replay
from loramux.bench.results import Percentiles, Run, requests_per_adapter

HEADINGS = (
    "adapters",
    "requests",
    "not ok",
    "tokens/s",
    "requests/s",
    "TTFT ms, p50 p90 p99",
    "inter-token ms, p50 p90 p99",
    "end to end ms, p50 p90 p99",
)


def report(plan: Plan, runs: Sequence[Run], *, target: Mapping[str, object]) -> dict[str, object]:
    """Say all of it, in what JSON can say; `target` is what was measured."""
    return {"environment": environment(), "target": dict(target), "load": _load(plan), "runs": [*map(_run, runs)]}


def row(run: Run) -> tuple[str, ...]:
    """Return the cells under HEADINGS."""
    summary = run.summary()
    return (
        str(run.num_adapters),
        str(summary.num_requests),
        str(summary.num_requests - summary.num_ok),
        f"{summary.output_tokens_per_second:,.1f}",
        f"{summary.requests_per_second:,.2f}",
        *map(
            _milliseconds,
            (summary.ttft_seconds, summary.inter_token_seconds, summary.latency_seconds),
        ),
    )


def _milliseconds(percentiles: Percentiles | None) -> str:
    if percentiles is None:
        return "-"
    return "  ".join(f"{1000 * seconds:,.1f}" for seconds in (percentiles.p50, percentiles.p90, percentiles.p99))


def _run(run: Run) -> dict[str, object]:
    return {
        "num_adapters": run.num_adapters,
        "summary": asdict(run.summary()),
        "requests_per_adapter": requests_per_adapter(run.results),
        "counts": dict(run.counts),
        "requests": [asdict(result) for result in run.results],
    }


def _load(plan: Plan) -> dict[str, object]:
    load = plan.load
    if isinstance(load, Replay):
        described: dict[str, object] = {"replayed_requests": load.num_requests, "seed": load.seed}
    else:
        described = asdict(load)
    return described | {
        "adapters": [{"name": choice.name, "path": choice.path} for choice in plan.choices],
        "num_adapters": list(plan.sweep),
        "concurrency": plan.concurrency,
        "request_rate": _rate(plan),
        "warmup_requests": plan.num_warmup,
    }


def _rate(plan: Plan) -> float | str | None:
    """JSON has no infinity."""
    if plan.concurrency is not None:
        return None
    if plan.request_rate is None:
        return "as logged"
    return "inf" if math.isinf(plan.request_rate) else plan.request_rate
