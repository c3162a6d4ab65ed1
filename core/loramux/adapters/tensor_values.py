"""The values of an adapter's tensors: taken from the bytes that were hashed, finite, and relative to our base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from loramux.adapters.refusal import Refusal, shown
from loramux.adapters.safetensors_header import TensorEntry

_ROWS_AT_ONCE = 4096  # an embedding is compared in pieces: whole, it would need its size twice more in float32
_SMALLEST_DIFFERENCE = 1e-6  # float16 cannot tell values nearer to zero apart


def tensor_at(data: memoryview | bytearray, entry: TensorEntry) -> torch.Tensor:
    """Return the tensor as a view of `data`, which it keeps alive."""
    start, count = entry.start, math.prod(entry.shape)
    if start % entry.dtype.itemsize:  # torch reads from any address, but kernels want whole ones
        data, start = bytearray(data[start : entry.end]), 0
    return torch.frombuffer(data, dtype=entry.dtype, count=count, offset=start).reshape(entry.shape)


def tensors_of(data: memoryview | bytearray, entries: Sequence[TensorEntry]) -> Sequence[torch.Tensor]:
    """Return the tensors of all entries, which cover `data` in their order, as views of it where they can be."""
    if len({entry.dtype for entry in entries}) > 1:
        return [tensor_at(data, entry) for entry in entries]
    flat = torch.frombuffer(data, dtype=entries[0].dtype)
    pieces = flat.split_with_sizes([math.prod(entry.shape) for entry in entries])
    return [piece.view(entry.shape) for piece, entry in zip(pieces, entries, strict=True)]


def refuse_non_finite(data: memoryview | bytearray, entries: Sequence[TensorEntry], serving_dtype: torch.dtype) -> None:
    """Raise Refusal if any value is not finite as stored, or will not be in the dtype that serves.

    The entries cover `data`, so one pass over all of it is enough for a sound file; only a refusal needs the names.
    """
    dtypes = {entry.dtype for entry in entries}
    if len(dtypes) == 1 and _why_not_finite(torch.frombuffer(data, dtype=dtypes.pop()), serving_dtype) is None:
        return
    for entry in entries:
        reason = _why_not_finite(tensor_at(data, entry), serving_dtype)
        if reason is not None:
            raise Refusal(f"tensor {shown(entry.name)} has values that are not finite{reason}.")


def _why_not_finite(tensor: torch.Tensor, serving_dtype: torch.dtype) -> str | None:
    extremes = torch.stack(torch.aminmax(tensor))  # both are NaN if any value is
    if not bool(extremes.isfinite().all()):
        return ""
    if tensor.dtype != serving_dtype and not bool(extremes.to(serving_dtype).isfinite().all()):
        return f" in {str(serving_dtype).removeprefix('torch.')}, which this server uses"
    return None


def refuse_changed_base(module: str, saved: torch.Tensor, current: torch.Tensor) -> None:
    """Raise Refusal unless the saved weight is the base's own, up to the rounding of the coarser of both dtypes."""
    tolerance = 2 * max(torch.finfo(saved.dtype).eps, torch.finfo(current.dtype).eps)
    is_same = current.shape == saved.shape and all(
        torch.allclose(
            current[start : start + _ROWS_AT_ONCE].detach().to("cpu", torch.float32),
            saved[start : start + _ROWS_AT_ONCE].float(),
            rtol=tolerance,
            atol=_SMALLEST_DIFFERENCE,
        )
        for start in range(0, saved.shape[0], _ROWS_AT_ONCE)
    )
    if not is_same:
        raise Refusal(f"module {module}: its saved base weight differs from this base model.")
