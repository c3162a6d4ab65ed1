"""What a step of the base model costs, before any adapter.

A layer has nine launches: two norms with the residual's sum, four products, rotary embedding with the write to the KV
cache, attention, and the gate's product. Around the layers are the embedding, the last norm, lm_head over one row per
sequence, and the choice of a token.
"""

from __future__ import annotations

from collections.abc import Iterator

from costs.batch import Batch
from costs.model_shape import Group, ModelShape
from costs.work import Kernel, Step

LAUNCHES_PER_LAYER = 9
LAUNCHES_AROUND = 4


def base_step(shape: ModelShape, batch: Batch, *, nbytes: int = 2) -> Step:
    """All launches of a step; nbytes: of one weight, activation or cached number."""
    return Step.of([*(list(_layer(shape, batch, nbytes)) * shape.num_layers), *_around(shape, batch, nbytes)])


def _layer(shape: ModelShape, batch: Batch, nbytes: int) -> Iterator[Kernel]:
    norm = Kernel(nbytes=4 * batch.num_rows * shape.hidden * nbytes)  # input, residual in, residual out, output
    yield from (norm, norm)
    for group in shape.groups:
        yield _product(group, batch.num_rows, nbytes)
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield Kernel(nbytes=2 * batch.num_rows * (heads + 2 * kv) * nbytes)  # rotary, values moved with the keys
    new = batch.num_rows / batch.num_sequences
    seen = batch.num_rows * (batch.context + (new + 1) / 2)  # of each row: what was there, and the rows up to its own
    cached = batch.num_sequences * (batch.context + new) * 2 * kv
    yield Kernel(nbytes=(cached + 2 * batch.num_rows * heads) * nbytes, flops=4 * seen * heads)
    yield Kernel(nbytes=3 * batch.num_rows * shape.intermediate * nbytes)


def _around(shape: ModelShape, batch: Batch, nbytes: int) -> Iterator[Kernel]:
    row = shape.hidden * nbytes
    yield Kernel(nbytes=2 * batch.num_rows * row)
    yield Kernel(nbytes=4 * batch.num_rows * row)
    yield _product(Group("lm_head", shape.hidden, (shape.vocab_size,)), batch.num_sequences, nbytes)
    yield Kernel(nbytes=batch.num_sequences * shape.vocab_size * nbytes)


def _product(group: Group, num_rows: int, nbytes: int) -> Kernel:
    weights = group.in_features * group.out_features
    rows = num_rows * (group.in_features + group.out_features)
    return Kernel(nbytes=(weights + rows) * nbytes, flops=2 * num_rows * weights)
