"""What adapters add to a step by the scheme of loramux_kernels.

A group of projections has one launch, whatever the batch: a program takes a piece of an adapter's rows and some outputs
of one member, multiplies the rows by the whole of A, and that by its part of B. Where the server allows higher ranks
than a program can keep, there are two launches, shrink and expand. Every adapter has its own rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from costs.batch import AdapterRows, Batch
from costs.model_shape import Group, ModelShape
from costs.work import Kernel, Step, blocks

PIECE_ROWS = 16
COLUMNS = 128
NUM_PROGRAMS = 256
MAX_FUSED_RANK = 64
RANK_TILES = (16, 64)
"""As in loramux_kernels: a program's rows, the unit of its outputs, programs that a launch aims at, the highest rank of
the one launch, and ranks as the products see them."""
FLOAT32_BYTES = 4


def launches_per_group(max_rank: int) -> int:
    """Of the dispatch, for a group that some adapter of the batch changes; max_rank: what the server allows."""
    return 1 if max_rank <= MAX_FUSED_RANK else 2


def lora_step(shape: ModelShape, batch: Batch, *, max_rank: int, nbytes: int = 2) -> Step:
    """All launches beyond the base model's step; nbytes: of one weight or activation."""
    if not batch.adapters:
        return Step(())
    layer: list[Kernel] = []
    for group in shape.groups:
        if launches_per_group(max_rank) == 1:
            layer.append(_fused(group, batch.adapters, nbytes))
        else:
            layer += (_shrink(group, batch.adapters, max_rank, nbytes), _expand(group, batch.adapters, nbytes))
    return Step.of(layer * shape.num_layers)


def _fused(group: Group, adapters: Sequence[AdapterRows], nbytes: int) -> Kernel:
    columns, spans = _spans(group, adapters)
    inputs, outputs = group.in_features, group.out_features
    read = again = flops = longest = 0
    for one in adapters:
        pieces, rank = blocks(one.num_rows, PIECE_ROWS), _padded(one.rank)
        rows, a, b = one.num_rows * inputs, one.rank * inputs, one.rank * outputs
        read += rows + len(group.widths) * a + b + 2 * one.num_rows * outputs
        again += (spans - 1) * rows + (pieces * spans - len(group.widths)) * a + (pieces - 1) * b
        flops += 2 * pieces * PIECE_ROWS * rank * (spans * inputs + outputs)
        longest = max(longest, (one.rank + min(one.num_rows, PIECE_ROWS)) * inputs + one.rank * columns)
    return Kernel(nbytes=read * nbytes, cache_bytes=again * nbytes, flops=flops, program_bytes=longest * nbytes)


def _shrink(group: Group, adapters: Sequence[AdapterRows], max_rank: int, nbytes: int) -> Kernel:
    members, inputs, tile = len(group.widths), group.in_features, RANK_TILES[-1]
    read = again = flops = longest = idle = 0
    for one in adapters:
        pieces, ranks = blocks(one.num_rows, PIECE_ROWS), blocks(one.rank, tile)
        rows, a = one.num_rows * inputs, members * one.rank * inputs
        read += rows + a
        again += (members * ranks - 1) * rows + (pieces - 1) * a
        flops += 2 * pieces * PIECE_ROWS * members * ranks * tile * inputs
        longest = max(longest, (min(one.rank, tile) + min(one.num_rows, PIECE_ROWS)) * inputs)
        idle += pieces * members * (blocks(max_rank, tile) - ranks)
    return Kernel(
        nbytes=read * nbytes + _between(group, adapters),
        cache_bytes=again * nbytes,
        flops=flops,
        program_bytes=longest * nbytes,
        idle_programs=idle,
    )


def _expand(group: Group, adapters: Sequence[AdapterRows], nbytes: int) -> Kernel:
    columns, spans = _spans(group, adapters)
    moved = again = flops = longest = 0
    for one in adapters:
        pieces, b = blocks(one.num_rows, PIECE_ROWS), one.rank * group.out_features
        moved += b + 2 * one.num_rows * group.out_features
        again += (pieces - 1) * b * nbytes + (spans - len(group.widths)) * one.num_rows * one.rank * FLOAT32_BYTES
        flops += 2 * pieces * PIECE_ROWS * _padded(one.rank) * group.out_features
        rows = min(one.num_rows, PIECE_ROWS) * one.rank * FLOAT32_BYTES
        longest = max(longest, rows + one.rank * columns * nbytes)
    between = _between(group, adapters)
    return Kernel(nbytes=moved * nbytes + between, cache_bytes=again, flops=flops, program_bytes=longest)


def _between(group: Group, adapters: Sequence[AdapterRows]) -> int:
    """Bytes of the rows between shrink and expand."""
    return len(group.widths) * sum(one.num_rows * one.rank for one in adapters) * FLOAT32_BYTES


def _spans(group: Group, adapters: Sequence[AdapterRows]) -> tuple[int, int]:
    """(columns of a program, programs per piece) of a launch."""
    pieces = sum(blocks(one.num_rows, PIECE_ROWS) for one in adapters)
    tiles = sum(blocks(width, COLUMNS) for width in group.widths)
    columns = COLUMNS * max(1, min(tiles * pieces // NUM_PROGRAMS, blocks(max(group.widths), COLUMNS)))
    return columns, sum(blocks(width, columns) for width in group.widths)


def _padded(rank: int) -> int:
    """As the products see it."""
    return next((tile for tile in RANK_TILES if rank <= tile), blocks(rank, RANK_TILES[-1]) * RANK_TILES[-1])
