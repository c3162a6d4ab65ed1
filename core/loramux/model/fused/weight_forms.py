"""The forms that a product's weight can take instead of float32 rows: panels, or int8."""

from __future__ import annotations

from typing import Protocol

import torch

from loramux.config import Quantization
from loramux_kernels import int8_linear, pack_weight, packed_linear, quantize_int8
from loramux_kernels.backend import use_numba


class WeightForm(Protocol):
    """A weight [out, in] that multiplies rows [num_rows, in]."""

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...

    def read(self) -> torch.Tensor:
        """The weight [out, in] that `multiply` uses, as float32."""
        ...


class PanelForm:
    """A float32 weight in panels; `read` is exact."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = pack_weight(weight)

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return packed_linear(rows, self._weight, bias)

    def read(self) -> torch.Tensor:
        return self._weight.unpack()


class Int8Form:
    """A weight rounded to int8, one scale per output: `read` gives the rounded weight, not the checkpoint's."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = quantize_int8(weight)

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return int8_linear(rows, self._weight, bias)

    def read(self) -> torch.Tensor:
        return self._weight.dequantize()


def has_forms(weight: torch.Tensor) -> bool:
    """Say whether a weight can take another form at all: asked before weights are copied into one."""
    return weight.dtype is torch.float32 and weight.device.type == "cpu"


def form_of(weight: torch.Tensor, quantization: Quantization | None) -> WeightForm | None:
    """The form that multiplies fastest, of those that are asked for; None where the weight is best left as it is."""
    if quantization == "int8":
        return Int8Form(weight)
    return PanelForm(weight) if use_numba(weight) else None
