"""Triton launchers of the LoRA ops."""

from __future__ import annotations

import torch

from loramux_kernels.segments import Segments
from loramux_kernels.slot_weights import SlotWeights


def shrink(x: torch.Tensor, weights: SlotWeights, segments: Segments, out: torch.Tensor) -> None:
    """Not there yet."""
    raise NotImplementedError


def expand(shrunk: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor) -> None:
    """Not there yet."""
    raise NotImplementedError


def linear(x: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor) -> None:
    """Not there yet."""
    raise NotImplementedError


def embedding(token_ids: torch.Tensor, weights: SlotWeights, segments: Segments, y: torch.Tensor, scale: float) -> None:
    """Not there yet."""
    raise NotImplementedError
