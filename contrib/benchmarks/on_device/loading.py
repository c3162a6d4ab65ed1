"""Streams while adapters come from the disk into slots: how much longer their tokens take meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from load_windows import LoadWindows
from loramux import EngineArgs, LoRARequest
from loramux.bench.engine_target import EngineTarget


@dataclass(frozen=True, slots=True)
class Loading:
    """The streams' seconds between tokens, and how many adapters were read from the disk and put into a slot."""

    windows: LoadWindows
    num_reads: int
    num_slot_loads: int


def time_loading(args: EngineArgs, adapters: Sequence[LoRARequest], *, num_streamed: int) -> Loading:
    """Run streams on the first adapters while the others, which are in no memory yet, are asked for one by one."""
    target = EngineTarget.start(args, {adapter.lora_name: adapter for adapter in adapters})
    names = [adapter.lora_name for adapter in adapters]
    counted = target.counting()
    try:
        windows = asyncio.run(LoadWindows.measure(target, names[:num_streamed], names[num_streamed:]))
        counts = counted()
    finally:
        target.close()
    reads, num_slot_loads = counts["adapter_loads"], counts["num_slot_loads"]
    assert isinstance(reads, dict)
    assert isinstance(num_slot_loads, int)
    return Loading(windows, sum(reads.values()), num_slot_loads)
