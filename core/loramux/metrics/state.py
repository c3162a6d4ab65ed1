"""What a server holds at one moment, and has counted so far, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Transition = Literal["source_to_disk", "disk_to_host", "host_to_slot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """The adapters in one tier, and how many have been evicted from it to make room for others."""

    num_adapters: int = 0
    nbytes: int = 0
    num_pinned: int = 0
    num_evictions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One look at an engine that does not stop for it: its numbers may be a step apart.

    A request that waits for its adapter is a waiting one. An adapter both runs and waits when some of its requests run
    and others wait. `kv_usage` is the share of all KV blocks that sequences hold, from 0 to 1.
    """

    num_running: int = 0
    num_waiting: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    max_loras: int = 0
    max_num_seqs: int = 0
    kv_usage: float = 0.0
    num_slots_in_use: int = 0
    num_leases: int = 0
    slots: TierState = TierState()
    host: TierState = TierState()
    num_steps: int = 0
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """One look at a server; `disk` is None where nothing is fetched. `sources` has the seconds each is left alone."""

    base_model_name: str
    engine: EngineState
    num_served_adapters: int = 0
    num_loading_adapters: int = 0
    num_in_flight: int = 0
    disk: TierState | None = None
    sources: Mapping[str, float] = field(default_factory=dict)
