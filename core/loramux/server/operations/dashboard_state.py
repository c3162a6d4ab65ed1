"""What the dashboard shows at one moment, as plain JSON: a bounded part of what may be thousands of adapters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from heapq import nlargest

from loramux import __version__
from loramux.adapters.failures import Failure
from loramux.adapters.generations import GenerationUse
from loramux.server.operations.adapter_list import AdapterRows
from loramux.server.state import Server

MAX_SHOWN = {"slot": 60, "host": 40, "disk": 40}
"""Of each tier, the ones used last; the others are counted, and found by searching."""

MAX_TRAFFIC = 200
LONGEST_REASON = 1_000

Json = dict[str, object]


def dashboard_state(server: Server, query: str = "") -> Json:
    """Describe the server to somebody who looks for adapters whose name or alias contains `query`."""
    engine = server.engine.state()
    rows = AdapterRows(server)
    tiers = _tiers(server, rows, query.lower())
    names = [row["lora_name"] for tier in tiers.values() for row in _adapters(tier)]
    return {
        "query": query,
        "server": {
            "version": __version__,
            "names": list(server.base_model_names),
            "started": server.created,
            "facts": [list(fact) for fact in server.facts],
        },
        "is_draining": server.in_flight.is_draining,
        "in_flight": len(server.in_flight),
        "engine": {
            "is_running": server.engine.is_running,
            "running": engine.num_running,
            "waiting": engine.num_waiting,
            "running_adapters": len(engine.running_adapters),
            "loading": server.registry.num_loading,
            "kv_usage": round(engine.kv_usage, 4),
        },
        "num_served": len(rows.uses),
        "num_pinned": sum(residency.is_pinned for residency in rows.residencies.values()),
        "totals": {"requests": server.traffic.total.num_requests, "tokens": server.traffic.total.num_tokens},
        "tiers": tiers,
        "traffic": _traffic(server, names),
        "sources": [
            {"name": name, "retry_after_seconds": round(seconds, 1)} for name, seconds in server.registry.sources()
        ],
        "failures": [_failure(failure) for failure in server.registry.failures()],
    }


def _tiers(server: Server, rows: AdapterRows, query: str) -> dict[str, Json]:
    by_tier: dict[str, list[GenerationUse]] = {tier: [] for tier in MAX_SHOWN}
    counts = dict.fromkeys(MAX_SHOWN, 0)
    for use in rows.uses:
        tier = rows.tier_of(use)
        counts[tier] += 1
        if not query or any(query in name.lower() for name in (use.served.name, *rows.aliases_of(use))):
            by_tier[tier].append(use)
    summary = server.engine.summary
    capacities = {"slot": summary.max_loras, "host": summary.max_cpu_loras - counts["slot"], "disk": None}
    return {
        tier: {
            "count": counts[tier],
            "capacity": capacities[tier],
            "matching": len(uses),
            "adapters": [rows.row(use) for use in _shown(uses, MAX_SHOWN[tier])],
        }
        for tier, uses in by_tier.items()
    }


def _shown(uses: Sequence[GenerationUse], limit: int) -> list[GenerationUse]:
    """The ones used last, in the order of their names, so that they move only from tier to tier."""
    used_last = nlargest(limit, uses, key=lambda use: (use.num_active > 0, use.last_used or 0.0))
    return sorted(used_last, key=lambda use: (use.served.name, use.served.id))


def _adapters(tier: Json) -> list[Mapping[str, object]]:
    adapters = tier["adapters"]
    assert isinstance(adapters, list)
    return adapters


def _traffic(server: Server, names: Sequence[object]) -> list[Json]:
    """The counters of the models that are shown, and of those that were asked most."""
    shown = {None, *names}
    models = nlargest(MAX_TRAFFIC, server.traffic, key=lambda model: (model.name in shown, model.num_tokens))
    return [{"name": model.name, "requests": model.num_requests, "tokens": model.num_tokens} for model in models]


def _failure(failure: Failure) -> Json:
    return {
        "adapter_name": failure.adapter_name,
        "kind": failure.kind,
        "reason": failure.reason[:LONGEST_REASON],
        "at": failure.at,
        "count": failure.count,
        "steps": [{**asdict(step), "reason": step.reason[:LONGEST_REASON]} for step in failure.steps],
    }


def now() -> float:
    """The time that goes with a state, in Unix seconds."""
    return round(time.time(), 3)
