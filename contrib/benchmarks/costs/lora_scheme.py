"""What adapters add to a step by the scheme of loramux_kernels.

A decode step has one launch per group of projections, a prefill two, shrink and expand. Every adapter has its own rank,
a program rows of one adapter, and no program of the grid is without work.
"""

from __future__ import annotations

from collections.abc import Iterator

from costs.batch import AdapterRows, Batch
from costs.model_shape import Group, ModelShape
from costs.work import Kernel, Step, blocks

DECODE_LAUNCHES_PER_GROUP = 1
PREFILL_LAUNCHES_PER_GROUP = 2
"""Of the dispatch in loramux_kernels, for a group that some adapter of the batch changes; the forms below are these."""
BLOCK_ROWS, BLOCK_RANK, BLOCK_OUTPUTS = 32, 16, 128
"""Of one program."""
FLOAT32_BYTES = 4


def lora_step(shape: ModelShape, batch: Batch, *, nbytes: int = 2) -> Step:
    """All launches beyond the base model's step; nbytes: of one weight or activation."""
    if not batch.adapters:
        return Step(())
    form = _decode if batch.is_decode else _prefill
    layer = [kernel for group in shape.groups for kernel in form(group, batch.adapters, nbytes)]
    return Step.of(layer * shape.num_layers)


def _decode(group: Group, adapters: tuple[AdapterRows, ...], nbytes: int) -> Iterator[Kernel]:
    shrink, expand = _shrink(group, adapters, nbytes), _expand(group, adapters, nbytes)
    between = 2 * _between(group, adapters)  # stays where it is computed
    yield Kernel(nbytes=shrink.nbytes + expand.nbytes - between, flops=shrink.flops + expand.flops)


def _prefill(group: Group, adapters: tuple[AdapterRows, ...], nbytes: int) -> Iterator[Kernel]:
    yield _shrink(group, adapters, nbytes)
    yield _expand(group, adapters, nbytes)


def _shrink(group: Group, adapters: tuple[AdapterRows, ...], nbytes: int) -> Kernel:
    members, inputs = len(group.widths), group.in_features
    read = again = flops = 0
    for one in adapters:
        pieces, ranks = blocks(one.num_rows, BLOCK_ROWS), blocks(one.rank, BLOCK_RANK)
        rows, weights = one.num_rows * inputs, members * one.rank * inputs
        read += rows + weights
        again += (members * ranks - 1) * rows + (pieces - 1) * weights
        flops += 2 * pieces * BLOCK_ROWS * members * ranks * BLOCK_RANK * inputs
    return Kernel(nbytes=read * nbytes + _between(group, adapters), flops=flops, cache_bytes=again * nbytes)


def _expand(group: Group, adapters: tuple[AdapterRows, ...], nbytes: int) -> Kernel:
    moved = again = flops = 0
    for one in adapters:
        pieces, ranks = blocks(one.num_rows, BLOCK_ROWS), blocks(one.rank, BLOCK_RANK)
        weights = one.rank * group.out_features
        moved += weights + 2 * one.num_rows * group.out_features
        tiles = sum(blocks(width, BLOCK_OUTPUTS) - 1 for width in group.widths)
        again += (pieces - 1) * weights * nbytes + tiles * one.num_rows * one.rank * FLOAT32_BYTES
        flops += 2 * pieces * BLOCK_ROWS * ranks * BLOCK_RANK * group.out_features
    return Kernel(nbytes=moved * nbytes + _between(group, adapters), flops=flops, cache_bytes=again)


def _between(group: Group, adapters: tuple[AdapterRows, ...]) -> int:
    """Bytes of the rows between shrink and expand."""
    return len(group.widths) * sum(one.num_rows * one.rank for one in adapters) * FLOAT32_BYTES
