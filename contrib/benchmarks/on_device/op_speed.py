"""The LoRA op of a decode step and of a prefill, beside its byte roofline and the peers' scheme on the same pairs.

One call goes through the groups of several layers, more weights than any cache holds, as a step does; on a GPU it is
captured in a graph, as a step is, so that the launches cost what they cost there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from costs.batch import AdapterRows, Batch
from costs.lora_scheme import lora_step
from costs.model_shape import Group, ModelShape
from loramux_kernels import Segments, SlotWeights, lora_group, select_backend
from on_device.batches import even_segments, random_pairs, slot_weights, slots_of_rows
from on_device.peers_lora_triton import PeerMapping, PeerModule, add_deltas

COPIED_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Load:
    """Rows of as many adapters, the same number for each; `ranks` are theirs in turn. The peers pad to `max_rank`."""

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


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one call by each scheme, and the bytes that ours has to move in it."""

    load: Load
    ours: float
    peers: float
    nbytes: float


class _Layer:
    """The pairs of one group in every slot, in both schemes' forms, and rows to call them on."""

    def __init__(self, group: Group, load: Load, like: torch.Tensor) -> None:
        self.members: list[tuple[SlotWeights, int]] = []
        self.peers = PeerModule(
            group.in_features,
            group.widths,
            num_slots=load.num_adapters,
            max_rank=load.max_rank,
            dtype=like.dtype,
            device=like.device,
        )
        firsts = accumulate(group.widths, initial=0)
        for index, (width, first) in enumerate(zip(group.widths, firsts, strict=False)):
            pairs = random_pairs(load.adapter_ranks, group.in_features, width, like)
            self.members.append((slot_weights(pairs, group.in_features, width, like), first))
            for slot, pair in enumerate(pairs):
                assert pair is not None
                self.peers.set(slot, index, *pair)
        self.x = like.new_empty(load.num_rows, group.in_features).normal_()
        self.y = like.new_zeros(load.num_rows, group.out_features)


def time_ops(shape: ModelShape, loads: Sequence[Load], dtype: torch.dtype, device: torch.device) -> list[Timed]:
    """Time each load by both schemes, on as many layers as the shape has."""
    select_backend("triton")
    try:
        with torch.inference_mode():
            return [_time(shape, load, torch.empty(0, dtype=dtype, device=device)) for load in loads]
    finally:
        select_backend(None)


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


def _time(shape: ModelShape, load: Load, like: torch.Tensor) -> Timed:
    layers = [_Layer(group, load, like) for _ in range(shape.num_layers) for group in shape.groups]
    segments = even_segments(load.num_rows, load.num_adapters)
    slots = torch.tensor(slots_of_rows(segments, load.num_adapters), device=like.device)
    mapping = PeerMapping.of(slots, load.num_adapters, is_decode=load.is_decode)
    return Timed(
        load=load,
        ours=seconds_of(lambda: _ours(layers, segments), like.device),
        peers=seconds_of(lambda: _theirs(layers, mapping), like.device),
        nbytes=lora_step(shape, load.batch(), nbytes=like.element_size()).nbytes,
    )


def _ours(layers: Sequence[_Layer], segments: Segments) -> None:
    for layer in layers:
        lora_group(layer.x, layer.members, segments, layer.y)


def _theirs(layers: Sequence[_Layer], mapping: PeerMapping) -> None:
    for layer in layers:
        add_deltas(layer.x, layer.peers, mapping, layer.y)
