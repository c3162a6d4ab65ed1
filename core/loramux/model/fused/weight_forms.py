"""The forms that a product's weights can take instead of rows: panels, int8, or joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses

from loramux.config import Quantization
from loramux.model.host_memory import HugePages
from loramux_kernels import int8_linear, pack_weight, packed_linear, quantize_int8
from loramux_kernels.backend import use_numba


class WeightForm(Protocol):
    """A weight [out, in] that multiplies rows [num_rows, in]."""

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...

    def read(self) -> torch.Tensor:
        """The weight [out, in] that `multiply` uses."""
        ...


class PanelForm:
    """A float32 weight in panels; `read` is exact."""

    def __init__(self, weight: torch.Tensor, pages: HugePages) -> None:
        self._weight = pack_weight(weight, pages.zeros)

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return packed_linear(rows, self._weight, bias)

    def read(self) -> torch.Tensor:
        return self._weight.unpack()


class Int8Form:
    """A weight rounded to int8, one scale per output: `read` gives the rounded weight, not the checkpoint's."""

    def __init__(self, weight: torch.Tensor, pages: HugePages) -> None:
        self._weight = quantize_int8(weight, pages.zeros)

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return int8_linear(rows, self._weight, bias)

    def read(self) -> torch.Tensor:
        return self._weight.dequantize()


class JoinedWeight:
    """The weights of several layers one below the other: one product for all of them. `read` is exact."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weight = torch.cat(list(weights))

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(rows, self._weight, bias)

    def read(self) -> torch.Tensor:
        return self._weight


def form_of(weights: Sequence[torch.Tensor], quantization: Quantization | None, pages: HugePages) -> WeightForm | None:
    """The form that multiplies fastest, of those that are asked for; None where weights are best left as they are.

    weights: [out, in] each, of layers that share their input. pages: where those of a CPU go.
    """
    is_float32 = weights[0].device.type == "cpu" and all(weight.dtype is torch.float32 for weight in weights)
    if is_float32 and (quantization == "int8" or use_numba(weights[0])):
        weight = weights[0].contiguous() if len(weights) == 1 else torch.cat(list(weights))
        return Int8Form(weight, pages) if quantization == "int8" else PanelForm(weight, pages)
    return JoinedWeight(weights) if len(weights) > 1 else None
