"""The forms that a product's weight can take instead of float32 rows: packed for MKL, or rounded to int8."""

from __future__ import annotations

import logging
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux.config import Quantization
from loramux_kernels import int8_linear, quantize_int8

logger = logging.getLogger(__name__)

ROWS_PACKED_FOR = 64  # any number above 1: MKL packs for one row in a form of its own


class WeightForm(Protocol):
    """A weight [out, in] that multiplies rows [num_rows, in]."""

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...

    def read(self) -> torch.Tensor:
        """The weight [out, in] that `multiply` uses, as float32; slow."""
        ...


class PackedWeight:
    """A float32 weight in the form that MKL multiplies by: no product packs it again. `read` is exact."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed: torch.Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS_PACKED_FOR)  # noqa: SLF001 - has no other name
        self._shape = torch.empty(1).expand(weight.shape)  # what MKL is told of the weights

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkl._mkl_linear(rows, self._packed, self._shape, bias, rows.shape[0])  # noqa: SLF001
        return y

    def read(self) -> torch.Tensor:
        return self.multiply(torch.eye(self._shape.shape[1]), None).t()

    def equals(self, weight: torch.Tensor) -> bool:
        """Compare a few rows, alone and together: MKL does not promise that packing serves any number of rows."""
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = F.linear(x, weight)
        return all(
            torch.allclose(self.multiply(x[:rows], None), expected[:rows], rtol=1e-4, atol=1e-4)
            for rows in range(1, len(x) + 1)
        )


class QuantizedWeight:
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
        return QuantizedWeight(weight)
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    packed = PackedWeight(weight)
    if not packed.equals(weight):
        logger.warning("weights not packed shape=%s reason='MKL gave other results'", tuple(weight.shape))
        return None
    return packed
