"""Looks at a running engine from another thread, without stopping it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loramux.config import EngineArgs
from loramux.engine.adapter_pool import AdapterPool
from loramux.engine.answers import Answer, RequestGroup
from loramux.engine.request import RequestStatus
from loramux.engine.scheduler import Scheduler
from loramux.metrics.state import EngineState, TierState


def look_at(
    args: EngineArgs,
    scheduler: Scheduler,
    adapters: AdapterPool,
    *,
    sequences: Sequence[tuple[RequestGroup, Answer]],
    awaiting_adapter: Sequence[RequestGroup],
) -> EngineState:
    """Say what an engine holds and has counted; `sequences` and `awaiting_adapter` are copies of the caller's."""
    running = [group for group, answer in sequences if answer.request.status is RequestStatus.RUNNING]
    waiting = [group for group, answer in sequences if answer.request.status is RequestStatus.WAITING]
    waiting += awaiting_adapter
    block_pool = scheduler.block_pool
    slots, host = _tiers(adapters)
    return EngineState(
        num_running=len(running),
        num_waiting=len(waiting),
        running_adapters=_names(running),
        waiting_adapters=_names(waiting),
        max_loras=adapters.slots.num_slots if args.enable_lora else 0,
        max_num_seqs=args.max_num_seqs,
        kv_usage=1 - block_pool.num_free / block_pool.num_blocks,
        num_slots_in_use=adapters.slots.num_in_use,
        num_leases=adapters.host_cache.num_leases,
        slots=slots,
        host=host,
        num_steps=scheduler.num_steps,
        num_computed_tokens=scheduler.num_computed_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
        num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
    )


def _tiers(adapters: AdapterPool) -> tuple[TierState, TierState]:
    contents = adapters.host_cache.contents()
    nbytes_of = {adapter.digest: adapter.nbytes for adapter in contents}
    in_slots = adapters.slots.residents()
    slots = TierState(
        num_adapters=len(in_slots),
        nbytes=sum(nbytes_of.get(digest, 0) for digest in in_slots),
        num_pinned=adapters.slots.num_pinned,
        num_evictions=adapters.slots.num_evictions,
    )
    host = TierState(
        num_adapters=len(contents),
        nbytes=sum(adapter.nbytes for adapter in contents),
        num_pinned=adapters.host_cache.num_pinned,
        num_evictions=adapters.host_cache.num_evictions,
    )
    return slots, host


def _names(groups: Iterable[RequestGroup]) -> tuple[str, ...]:
    return tuple(sorted({group.lora_request.lora_name for group in groups if group.lora_request is not None}))
