"""What adapters add to a step by the scheme of the peers, as they describe it.

The projections of one input are slices of one wrapped module. For each module a float32 buffer is cleared; `shrink`
adds to it by atomics, from programs that split the inputs between them; `expand` adds its product to the output. Every
slot has the server's highest rank, and the grid has room for all rows in every slot. Left out, in their favour: the
sort of rows by adapter on the device, and what an idle program costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from costs.batch import Batch
from costs.model_shape import Group, ModelShape
from costs.work import Kernel, Step, blocks

LAUNCHES_PER_GROUP = 3
BLOCK_ROWS, BLOCK_RANK, BLOCK_OUTPUTS, BLOCK_INPUTS = 32, 16, 128, 256
"""Of one program."""
SPLITS = {"decode": 64, "prefill": 8}
"""Programs that share the inputs of one product in shrink; those beyond its blocks add zeros."""
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class PeerServer:
    """max_rank: what ranks are padded to; a server has to be started with its highest one. num_slots: its max_loras."""

    max_rank: int
    num_slots: int


def peers_step(shape: ModelShape, batch: Batch, server: PeerServer, *, nbytes: int = 2) -> Step:
    """All launches beyond the base model's step; nbytes: of one weight or activation."""
    if not batch.adapters:
        return Step(())
    layer = [kernel for group in shape.groups for kernel in _module(group, batch, server, nbytes)]
    return Step.of(layer * shape.num_layers)


def _module(group: Group, batch: Batch, server: PeerServer, nbytes: int) -> tuple[Kernel, Kernel, Kernel]:
    slices, inputs, outputs = len(group.widths), group.in_features, group.out_features
    num_rows, num_adapters = sum(one.num_rows for one in batch.adapters), len(batch.adapters)
    pieces = sum(blocks(one.num_rows, BLOCK_ROWS) for one in batch.adapters)
    idle_pieces = server.num_slots * blocks(batch.num_rows, BLOCK_ROWS) - pieces
    ranks = blocks(server.max_rank, BLOCK_RANK)
    splits = SPLITS["decode" if batch.is_decode else "prefill"]
    idle_splits = max(0, splits - blocks(inputs, BLOCK_INPUTS))
    tiles = sum(blocks(width, BLOCK_OUTPUTS) for width in group.widths)

    buffer = slices * batch.num_rows * server.max_rank * FLOAT32_BYTES
    shrunk = slices * num_rows * server.max_rank * FLOAT32_BYTES
    a, b = slices * server.max_rank * inputs * nbytes, server.max_rank * outputs * nbytes
    rows = min(BLOCK_ROWS, max(one.num_rows for one in batch.adapters))
    own_inputs = blocks(blocks(inputs, BLOCK_INPUTS), splits) * BLOCK_INPUTS
    padded_flops = 2 * pieces * BLOCK_ROWS * ranks * BLOCK_RANK
    clear = Kernel(nbytes=buffer)
    shrink = Kernel(
        nbytes=num_rows * inputs * nbytes + num_adapters * a + shrunk,
        flops=padded_flops * slices * inputs,
        cache_bytes=(slices * ranks - 1) * num_rows * inputs * nbytes + (pieces - num_adapters) * a + splits * shrunk,
        program_bytes=(rows + BLOCK_RANK) * min(own_inputs, inputs) * nbytes,
        idle_programs=slices * ranks * (idle_pieces * splits + pieces * idle_splits),
    )
    expand = Kernel(
        nbytes=shrunk + num_adapters * b + 2 * num_rows * outputs * nbytes,
        flops=padded_flops * outputs,
        cache_bytes=(pieces - num_adapters) * b + (tiles - slices) * shrunk / slices,
        program_bytes=server.max_rank * (rows * FLOAT32_BYTES + BLOCK_OUTPUTS * nbytes),
        idle_programs=idle_pieces * tiles,
    )
    return clear, shrink, expand
