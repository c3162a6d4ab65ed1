"""The LoRA op of a decode step and of a prefill, and the same by the peers' scheme.

One call goes through the groups of several layers, more weights than any cache holds, as a step does; on a GPU it is
captured in a graph, as a step is, so that the launches cost what they cost there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

from costs.batch import AdapterRows, Batch
from costs.model_shape import Group, ModelShape
from loramux_kernels import SlotWeights, lora_group, select_backend
from on_device.batches import even_segments, random_pairs, slot_weights, slots_of_rows
from on_device.peers_lora_triton import PeerMapping, PeerModule, add_deltas

COPIED_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Load:
    """`num_rows` shared evenly by adapters whose ranks are `ranks` in turn; the peers pad these to `max_rank`."""

    name: str
    num_rows: int
    num_adapters: int
    ranks: tuple[int, ...]
    max_rank: int
    is_decode: bool = True

    @property
    def adapter_ranks(self) -> list[int]:
        return [self.ranks[index % len(self.ranks)] for index in range(self.num_adapters)]

    def batch(self) -> Batch:
        """As the roofline counts it."""
        rows = self.num_rows // self.num_adapters
        adapters = tuple(AdapterRows(rows, rank) for rank in self.adapter_ranks)
        num_sequences = self.num_rows if self.is_decode else self.num_adapters
        return Batch(num_rows=self.num_rows, num_sequences=num_sequences, context=0, adapters=adapters)


class _OurLayer:
    """The pairs of one group in every slot, and rows to call them on."""

    def __init__(self, group: Group, load: Load, like: torch.Tensor) -> None:
        self.members: list[tuple[SlotWeights, int]] = []
        firsts = accumulate(group.widths, initial=0)
        for width, first in zip(group.widths, firsts, strict=False):
            pairs = random_pairs(load.adapter_ranks, group.in_features, width, like)
            self.members.append((slot_weights(pairs, group.in_features, width, like), first))
        self.x = like.new_empty(load.num_rows, group.in_features).normal_()
        self.y = like.new_zeros(load.num_rows, group.out_features)


class _PeerLayer:
    """The same in the peers' form."""

    def __init__(self, group: Group, load: Load, like: torch.Tensor) -> None:
        room = {"num_slots": load.num_adapters, "max_rank": load.max_rank}
        self.module = PeerModule(group.in_features, group.widths, dtype=like.dtype, device=like.device, **room)
        for index, width in enumerate(group.widths):
            for slot, pair in enumerate(random_pairs(load.adapter_ranks, group.in_features, width, like)):
                assert pair is not None
                self.module.set(slot, index, *pair)
        self.x = like.new_empty(load.num_rows, group.in_features).normal_()
        self.y = like.new_zeros(load.num_rows, group.out_features)


def our_seconds(shape: ModelShape, load: Load, like: torch.Tensor) -> float:
    """Of all layers of the shape, on the device and in the dtype of `like`."""
    layers = [_OurLayer(group, load, like) for _ in range(shape.num_layers) for group in shape.groups]
    segments = even_segments(load.num_rows, load.num_adapters)

    def call() -> None:
        for layer in layers:
            lora_group(layer.x, layer.members, segments, layer.y)

    select_backend("triton")
    try:
        return seconds_of(call, like.device)
    finally:
        select_backend(None)


def peer_seconds(shape: ModelShape, load: Load, like: torch.Tensor) -> float:
    """The same by the peers' scheme; the sort of the rows, once per step, is not in it."""
    layers = [_PeerLayer(group, load, like) for _ in range(shape.num_layers) for group in shape.groups]
    slots = slots_of_rows(even_segments(load.num_rows, load.num_adapters), load.num_adapters)
    on_device = torch.tensor(slots, device=like.device)
    mapping = PeerMapping.of(on_device, load.num_adapters, is_decode=load.is_decode)

    def call() -> None:
        for layer in layers:
            add_deltas(layer.x, layer.module, mapping, layer.y)

    return seconds_of(call, like.device)


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(COPIED_BYTES // 4 if device.type == "cuda" else 2**16, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call: on a GPU of its replays in a graph, elsewhere one by the clock."""
    if device.type == "cuda":
        from triton.testing import do_bench_cudagraph

        return float(do_bench_cudagraph(call, return_mode="median")) / 1e3
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
