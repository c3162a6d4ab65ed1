"""What adapters add to a step by the scheme of loramux_kernels.

A group of projections has one launch, whatever the batch. Its first programs shrink: a piece of an adapter's rows by a
block of one member's A, over a split of the inputs, or over all where there is work for enough programs without. They
leave float32 sums, of which programs with some outputs of one member add up those of their rows, and multiply them by
their part of B. Every adapter has its own rank. Left out: how long a program of the second half waits for the last of
the first beyond what that one moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from costs.batch import AdapterRows, Batch
from costs.model_shape import Group, ModelShape
from costs.work import Kernel, Step, blocks

PIECE_ROWS = 16
COLUMNS = 128
NUM_PROGRAMS = 256
SPLIT_INPUTS, MAX_SPLITS = 256, 32
RANK_TILES = (16, 64)
"""As in loramux_kernels: a program's rows, the unit of its outputs, programs that either half of a launch aims at, the
unit of a split of the inputs, the most splits, and ranks as the products see them."""
FLOAT32_BYTES = 4


def lora_step(shape: ModelShape, batch: Batch, *, max_rank: int, nbytes: int = 2) -> Step:
    """All launches beyond the base model's step; max_rank: the server's; nbytes: of a weight or activation."""
    if not batch.adapters:
        return Step(())
    layer = [_fused(group, batch.adapters, max_rank, nbytes) for group in shape.groups]
    return Step.of(layer * shape.num_layers)


def _fused(group: Group, adapters: Sequence[AdapterRows], max_rank: int, nbytes: int) -> Kernel:
    """What is read from memory, and the sums once; the busiest program of either half, one after the other."""
    columns, spans = _spans(group, adapters)
    inputs, outputs, members, block = group.in_features, group.out_features, len(group.widths), RANK_TILES[-1]
    taken, num_sums = _splits(group, adapters, max_rank)
    moved = again = flops = shrink = expand = idle = 0
    for one in adapters:
        pieces, ranks, own_rows = blocks(one.num_rows, PIECE_ROWS), blocks(one.rank, block), one.num_rows * inputs
        a, b, y = members * one.rank * inputs, one.rank * outputs, one.num_rows * outputs
        sums = num_sums * one.num_rows * one.rank * FLOAT32_BYTES  # of one member
        moved += (own_rows + a + b + 2 * y) * nbytes + members * sums
        again += ((members * ranks - 1) * own_rows + (pieces - 1) * (a + b)) * nbytes + spans * sums
        flops += 2 * pieces * PIECE_ROWS * _padded(one.rank) * (members * inputs + outputs)
        rows, rank = min(one.num_rows, PIECE_ROWS), min(one.rank, block)
        shrink = max(shrink, (rows + rank) * min(taken, inputs) * nbytes + rows * rank * FLOAT32_BYTES)
        expand = max(expand, num_sums * rows * one.rank * FLOAT32_BYTES + one.rank * columns * nbytes)
        idle += pieces * members * num_sums * (blocks(max_rank, block) - ranks)
    return Kernel(nbytes=moved, cache_bytes=again, flops=flops, program_bytes=shrink + expand, idle_programs=idle)


def _splits(group: Group, adapters: Sequence[AdapterRows], max_rank: int) -> tuple[int, int]:
    """(inputs that a program of the first half takes, sums of a row) of a launch."""
    pieces = sum(blocks(one.num_rows, PIECE_ROWS) for one in adapters)
    products = pieces * len(group.widths) * blocks(max_rank, RANK_TILES[-1])
    split = SPLIT_INPUTS * blocks(group.in_features, SPLIT_INPUTS * MAX_SPLITS)
    taken = split if products < NUM_PROGRAMS // 2 else max(split, group.in_features)
    return taken, blocks(group.in_features, taken)


def _spans(group: Group, adapters: Sequence[AdapterRows]) -> tuple[int, int]:
    """(columns of a program of the second half, such programs per piece) of a launch."""
    pieces = sum(blocks(one.num_rows, PIECE_ROWS) for one in adapters)
    tiles = sum(blocks(width, COLUMNS) for width in group.widths)
    columns = COLUMNS * max(1, min(tiles * pieces // NUM_PROGRAMS, blocks(max(group.widths), COLUMNS)))
    return columns, sum(blocks(width, columns) for width in group.widths)


def _padded(rank: int) -> int:
    """As the products see it."""
    return next((tile for tile in RANK_TILES if rank <= tile), blocks(rank, RANK_TILES[-1]) * RANK_TILES[-1])
