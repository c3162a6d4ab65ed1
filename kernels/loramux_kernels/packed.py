"""Products by float32 weights kept in panels: the outputs of a panel lie side by side for every input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.backend import use_numba

PANEL = 32  # outputs that lie together
SHORT = 1 << 15  # multiplications: a loop of fewer is done before a second thread has begun


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] in panels of PANEL outputs; those of the last panel that the weight has not are zeros."""

    panels: torch.Tensor  # [num_panels, in, PANEL] float32, contiguous
    out_features: int

    def unpack(self) -> torch.Tensor:
        """The weight [out, in], exactly, as a copy."""
        return self.panels.transpose(1, 2).reshape(-1, self.panels.shape[1])[: self.out_features].contiguous()


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Lay out a float32 weight [out, in] on the CPU for `packed_linear`; takes as much memory as the weight."""
    if weight.dtype is not torch.float32 or weight.device.type != "cpu":
        raise ValueError(f"only float32 weights on the CPU are packed, got {weight.dtype} on {weight.device}")
    out_features, in_features = weight.shape
    num_whole, num_rest = divmod(out_features, PANEL)
    panels = weight.new_empty(num_whole + bool(num_rest), in_features, PANEL)
    panels[:num_whole] = weight[: num_whole * PANEL].view(num_whole, PANEL, in_features).transpose(1, 2)
    if num_rest:
        panels[-1, :, :num_rest] = weight[num_whole * PANEL :].t()
        panels[-1, :, num_rest:] = 0
    return PackedWeight(panels, out_features)


def packed_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.unpack().T + bias` [num_rows, out] of x [num_rows, in], in float32.

    By the loop of numba every result is one sum in the order of the inputs, the same to the bit whatever rows are
    beside it, and weights are read once for all rows. The torch reference unpacks the weight at each call.
    """
    if not use_numba(x):
        return F.linear(x, weight.unpack(), bias)
    from loramux_kernels import packed_numba  # numba is imported where it is used

    num_rows, in_features = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    y = x.new_empty(num_rows, weight.out_features)
    packed_numba.packed_linear().run(
        len(weight.panels),
        *(x.data_ptr(), 4 * x.stride(0), num_rows, in_features, weight.panels.data_ptr(), y.data_ptr()),
        *(4 * weight.out_features, weight.out_features),
        alone=num_rows * weight.panels.numel() < SHORT,
    )
    return y if bias is None else y.add_(bias)
