"""Products by weights kept as int8 with one float32 scale per output; rows and sums stay float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux_kernels.backend import use_numba
from loramux_kernels.layers import add_rows
from loramux_kernels.packed import Zeros, multiply_panels, pack_panels, unpack_panels, zeros

LARGEST = 127  # symmetric: -128 is not used


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight [out, in] as `values * scales[:, None]`; both contiguous."""

    panels: torch.Tensor  # int8, -127 to 127, in the panels of `packed`
    scales: torch.Tensor  # [out] float32

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scales.nbytes

    @property
    def values(self) -> torch.Tensor:
        """[out, in] int8; a copy."""
        return unpack_panels(self.panels, len(self.scales))

    def dequantize(self) -> torch.Tensor:
        """The float32 weight that products use."""
        return self.values * self.scales[:, None]


def quantize_int8(weight: torch.Tensor, zeros: Zeros = zeros) -> Int8Weight:
    """Round a weight [out, in] to int8, each output by its own largest magnitude: off by half a scale at most."""
    largest = weight.float().abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    values = weight.float().div(scales[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return Int8Weight(pack_panels(values.to(torch.int8), zeros), scales)


def int8_linear(x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.dequantize().T + bias` [num_rows, out] of x [num_rows, in], in float32.

    By the loop of numba a row is the same to the bit whatever rows are beside it, and the weights are never float32 in
    memory. The torch reference makes the float32 weight at each call.
    """
    if not use_numba(x):
        return F.linear(x.float(), weight.dequantize(), bias)
    y = multiply_panels(x, weight.panels, len(weight.scales), weight.scales)
    if bias is not None:
        add_rows(y, bias)
    return y
