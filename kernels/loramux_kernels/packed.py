"""Products by float32 weights kept in panels: the outputs of a panel lie side by side for every input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.backend import use_numba
from loramux_kernels.layers import add_rows
from loramux_kernels.recording import new_rows

PANEL = 32  # outputs that lie together
SHORT = 1 << 15  # multiplications: a loop of fewer is done before a second thread has begun


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] in panels of PANEL outputs; those of the last panel that the weight has not are zeros."""

    panels: torch.Tensor  # [num_panels, in, PANEL] float32, contiguous
    out_features: int

    def unpack(self) -> torch.Tensor:
        """The weight [out, in], exactly, as a copy."""
        return unpack_panels(self.panels, self.out_features)


Zeros = Callable[[Sequence[int], torch.dtype], torch.Tensor]
"""Makes a tensor of zeros of a shape and dtype, in memory of the caller's choice."""


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in memory of torch's own."""
    return torch.zeros(*shape, dtype=dtype)


def pack_weight(weight: torch.Tensor, zeros: Zeros = zeros) -> PackedWeight:
    """Lay out a float32 weight [out, in] on the CPU for `packed_linear`; takes as much memory as the weight."""
    if weight.dtype is not torch.float32 or weight.device.type != "cpu":
        raise ValueError(f"only float32 weights on the CPU are packed, got {weight.dtype} on {weight.device}")
    return PackedWeight(pack_panels(weight, zeros), len(weight))


def pack_panels(weight: torch.Tensor, zeros: Zeros) -> torch.Tensor:
    """[num_panels, in, PANEL] of a weight [out, in], of any dtype; a copy."""
    out_features, in_features = weight.shape
    num_whole, num_rest = divmod(out_features, PANEL)
    panels = zeros((num_whole + bool(num_rest), in_features, PANEL), weight.dtype)
    if weight.dtype is torch.float32 and use_numba(weight):
        from loramux_kernels import panels_numba  # numba is imported where it is used

        weight = weight.contiguous()
        addresses = weight.data_ptr(), panels.data_ptr()
        panels_numba.pack_float32().run(len(panels), *addresses, in_features, out_features)
        return panels
    panels[:num_whole] = weight[: num_whole * PANEL].view(num_whole, PANEL, in_features).transpose(1, 2)
    if num_rest:
        panels[-1, :, :num_rest] = weight[num_whole * PANEL :].t()
    return panels


def unpack_panels(panels: torch.Tensor, out_features: int) -> torch.Tensor:
    """The weight [out, in] that was packed; a copy."""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])[:out_features].contiguous()


def packed_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.unpack().T + bias` [num_rows, out] of x [num_rows, in], in float32.

    By the loop of numba every result is one sum in the order of the inputs, the same to the bit whatever rows are
    beside it, and weights are read once for all rows. The torch reference unpacks the weight at each call.
    """
    if not use_numba(x):
        return F.linear(x, weight.unpack(), bias)
    y = multiply_panels(x, weight.panels, weight.out_features)
    if bias is not None:
        add_rows(y, bias)
    return y


def multiply_panels(
    x: torch.Tensor, panels: torch.Tensor, out_features: int, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """Run the loop of numba on panels of float32, or on those of int8 and the scale of each output."""
    from loramux_kernels import panels_numba  # numba is imported where it is used

    num_rows, in_features = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    y = new_rows(x, num_rows, out_features)
    panels_numba.panel_linear(panels.itemsize).run(
        len(panels),
        *(x.data_ptr(), 4 * x.stride(0), num_rows, in_features, panels.data_ptr(), y.data_ptr()),
        *(4 * out_features, out_features, 0 if scales is None else scales.data_ptr()),
        alone=num_rows * panels.numel() < SHORT,
    )
    return y
