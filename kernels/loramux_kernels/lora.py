"""The LoRA ops: add every row's own low-rank delta, `y[row] += (x[row] @ A.T) @ B.T`, to a batch of mixed adapters.

Each op here is its contract, the torch reference, and the choice between it, numba (float32 on CPU) and Triton.
In all of them: x, y and the weights share one dtype (float32, float16, bfloat16) and device; sums and the intermediate
are float32; a result is rounded once, when it is added to y; rows in no segment, and rows whose slot has no pair, keep
their bits; a row's result depends on no other row (in the reference up to the blocking of torch's GEMM). ValueError
names a shape that does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loramux_kernels.backend import use_numba, use_triton
from loramux_kernels.recording import NotRecordable, is_recording
from loramux_kernels.segments import AnySegments
from loramux_kernels.slot_weights import SlotWeights


def lora_shrink(x: torch.Tensor, weights: SlotWeights, segments: AnySegments, out: torch.Tensor) -> None:
    """Write `out[row, :rank] = x[row] @ A.T` for the rows of every segment.

    x: [num_rows, in], out: [num_rows, at least max_rank] float32. Everything else in out, columns at and beyond the
    rank of a row's slot included, is left as it was.
    """
    _check_rows(x, weights.in_features, weights, segments)
    _check_shrunk(out, weights, segments)
    if use_triton(x):
        from loramux_kernels import lora_triton  # triton is imported where it is used

        lora_triton.shrink(x, weights, segments, out)
        return
    for slot, start, length in zip(segments.slots, segments.starts, segments.lengths, strict=True):
        if rank := weights.ranks[slot]:
            rows = x[start : start + length].float()
            torch.mm(rows, weights.transposed(slot)[0], out=out[start : start + length, :rank])


def lora_expand(shrunk: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor) -> None:
    """Add `y[row] += shrunk[row, :rank] @ B.T` to the rows of every segment.

    shrunk: [num_rows, at least max_rank] float32, y: [num_rows, out]. Columns at and beyond a slot's rank are not read.
    """
    _check_rows(y, weights.out_features, weights, segments)
    _check_shrunk(shrunk, weights, segments)
    if use_triton(y):
        from loramux_kernels import lora_triton

        lora_triton.expand(shrunk, weights, segments, y)
        return
    for slot, start, length in zip(segments.slots, segments.starts, segments.lengths, strict=True):
        if rank := weights.ranks[slot]:
            y[start : start + length].add_(shrunk[start : start + length, :rank] @ weights.transposed(slot)[1])


def lora_linear(x: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor) -> None:
    """Add `y[row] += (x[row] @ A.T) @ B.T` to the rows of every segment; x: [num_rows, in], y: [num_rows, out]."""
    if y.shape[-1] != weights.out_features:
        raise ValueError(f"y has {y.shape[-1]} columns, the module {weights.out_features}")
    lora_group(x, ((weights, 0),), segments, y)


def lora_group(
    x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor
) -> None:
    """`lora_linear` of modules that share x and write side by side, as fused projections do.

    A member is a module's weights and the first of its columns in y: its delta is added to `y[:, first : first + out]`.
    x: [num_rows, in], y: [num_rows, at least the columns of all members], which overlap in none.
    """
    if use_triton(y):
        from loramux_kernels import lora_triton  # triton is imported where it is used

        _check_group(x, members, segments, y)
        lora_triton.group(x, members, segments, y)
        return
    changing = [member for member in members if member[0].highest_rank or is_recording()]
    if not (changing and (segments.slots or is_recording())):
        return
    _check_group(x, changing, segments, y)
    if use_numba(x) and x.stride(1) == y.stride(1) == 1:
        from loramux_kernels import lora_numba  # numba is imported where it is used

        lora_numba.group(x, changing, segments, y)
        return
    if is_recording():
        raise NotRecordable("LoRA by torch's products")
    for weights, first in changing:
        columns = y[:, first : first + weights.out_features]
        for slot, start, length in zip(segments.slots, segments.starts, segments.lengths, strict=True):
            if weights.ranks[slot]:
                a_transposed, b_transposed = weights.transposed(slot)
                shrunk = x[start : start + length].float().mm(a_transposed)
                columns[start : start + length].add_(shrunk.mm(b_transposed))


def lora_embedding(
    token_ids: torch.Tensor, weights: SlotWeights, segments: AnySegments, y: torch.Tensor, scale: float = 1.0
) -> None:
    """Add `y[row] += scale * A[:, token_ids[row]] @ B.T` to the rows of every segment.

    token_ids: [num_rows] int64, each in 0..in_features-1 where its row has a pair; A: [rank, vocabulary]; y:
    [num_rows, out]. `scale` is what the model multiplies its embedding by (Gemma's embed_scale), 1 elsewhere.
    """
    if token_ids.dtype != torch.int64 or tuple(token_ids.shape) != (segments.num_rows,):
        raise ValueError(
            f"token_ids must be int64 [{segments.num_rows}], got {token_ids.dtype} {list(token_ids.shape)}"
        )
    _check_rows(y, weights.out_features, weights, segments)
    if use_triton(y):
        from loramux_kernels import lora_triton

        lora_triton.embedding(token_ids, weights, segments, y, scale)
        return
    for slot, start, length in zip(segments.slots, segments.starts, segments.lengths, strict=True):
        if weights.ranks[slot]:
            a_transposed, b_transposed = weights.transposed(slot)
            shrunk = a_transposed[token_ids[start : start + length]]
            y[start : start + length].add_(shrunk @ b_transposed, alpha=scale)


def _check_group(
    x: torch.Tensor, members: Sequence[tuple[SlotWeights, int]], segments: AnySegments, y: torch.Tensor
) -> None:
    if len(num_slots := {weights.num_slots for weights, _first in members}) > 1:
        raise ValueError(f"the members of a group have the same slots, got {sorted(num_slots)} of them")
    for weights, first in members:
        _check_rows(x, weights.in_features, weights, segments)
        if not 0 <= first <= y.shape[1] - weights.out_features:
            raise ValueError(f"y has {y.shape[1]} columns, a member writes {weights.out_features} from {first} on")
    if y.shape[0] != segments.num_rows or y.dtype != x.dtype:
        raise ValueError(f"expected y of {segments.num_rows} rows in {x.dtype}, got {list(y.shape)} in {y.dtype}")


def _check_rows(rows: torch.Tensor, features: int, weights: SlotWeights, segments: AnySegments) -> None:
    if rows.shape != (segments.num_rows, features):
        raise ValueError(f"expected rows of shape [{segments.num_rows}, {features}], got {list(rows.shape)}")
    if rows.dtype != weights.dtype:
        raise ValueError(f"the rows are {rows.dtype}, the adapter weights {weights.dtype}")
    if segments.max_slot >= weights.num_slots:
        raise ValueError(f"segments name slot {segments.max_slot}, the module has {weights.num_slots} slots")


def _check_shrunk(shrunk: torch.Tensor, weights: SlotWeights, segments: AnySegments) -> None:
    if shrunk.dtype != torch.float32 or shrunk.dim() != 2 or shrunk.shape[0] != segments.num_rows:
        raise ValueError(f"shrunk must be float32 [{segments.num_rows}, rank], got {shrunk.dtype} {list(shrunk.shape)}")
    if shrunk.shape[1] < weights.max_rank:
        raise ValueError(f"shrunk has {shrunk.shape[1]} columns, the highest rank is {weights.max_rank}")
