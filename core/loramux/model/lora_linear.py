"""LoRA layers: the base module computes as always, then every row gets the delta of its own adapter.

The base module stays where it is, with its name, its weights and whatever else refers to them; only its forward is
wrapped. Without an adapter in the batch a wrapped forward costs one look at the forward context.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from loramux.adapters.weights import LoRATarget
from loramux.model.forward_context import current_context
from loramux_kernels import SlotWeights, lora_embedding, lora_linear

Forward = Callable[[torch.Tensor], torch.Tensor]


def attach_lora(module: nn.Module, target: LoRATarget, weights: SlotWeights) -> None:
    """Let `module` add the delta of each row's adapter, read from `weights`, to what it computes."""
    if target.kind == "embedding":
        forward = _embedding_forward(module.forward, weights, _embedding_scale(module))
    else:
        forward = _linear_forward(module.forward, weights, is_lm_head=target.kind == "lm_head")
    module.forward = forward


def _linear_forward(base: Forward, weights: SlotWeights, *, is_lm_head: bool) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = base(x)
        context = current_context()
        if context is None:
            return y
        # lm_head sees only the rows whose logits are wanted
        segments = context.logit_segments if is_lm_head else context.segments
        if segments is not None:
            lora_linear(x.reshape(-1, x.shape[-1]), weights, segments, y.view(-1, y.shape[-1]))
        return y

    return forward


def _embedding_forward(base: Forward, weights: SlotWeights, scale: float) -> Forward:
    def forward(token_ids: torch.Tensor) -> torch.Tensor:
        y = base(token_ids)
        context = current_context()
        if context is not None and context.segments is not None:
            rows = y.view(-1, y.shape[-1])
            lora_embedding(token_ids.reshape(-1), weights, context.segments, rows, scale=scale)
        return y

    return forward


def _embedding_scale(module: nn.Module) -> float:
    """Gemma's embedding multiplies what it looks up; PEFT multiplies the delta by the same factor."""
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        return 1.0
    if isinstance(scale, torch.Tensor) and isinstance(module.weight, torch.Tensor):
        scale = scale.to(module.weight.dtype)
    return float(scale)
