"""Forward passes of the layers that most families share, in few calls: RMSNorm, gated MLP, rotary attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loramux.model.attention import ScoreRule, attend
from loramux.model.forward_context import current_context
from loramux.model.fused.linear import FusedLinear
from loramux_kernels import rms_norm, rotate_and_store, silu_mul

Forward = Callable[..., Any]


def norm_forward(weight: torch.Tensor, eps: float) -> Forward:
    """Llama's RMSNorm over the last dimension."""

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return rms_norm(rows, weight, eps).view(hidden_states.shape)

    return forward


def mlp_forward(gate_up: FusedLinear, down: FusedLinear, activation: nn.Module) -> Forward:
    """`down(activation(gate(x)) * up(x))`."""
    is_silu = type(activation).__name__ in ("SiLU", "SiLUActivation")

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = gate_up(x.reshape(-1, x.shape[-1]))
        if is_silu:
            gated = silu_mul(rows)
        else:
            gate, up = rows.chunk(2, dim=-1)
            gated = activation(gate) * up
        return down(gated).view(*x.shape[:-1], -1)

    return forward


def attention_forward(
    module: nn.Module, qkv: FusedLinear, out: FusedLinear, window: Callable[[], int | None]
) -> Forward:
    """Llama's attention over the paged cache: queries and keys are rotated where the product left them."""
    layer, dim, scale = int(module.layer_idx), int(module.head_dim), float(module.scaling)  # type: ignore[arg-type]
    num_heads = out.in_features // dim

    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_unused: object,
    ) -> tuple[torch.Tensor, None]:
        context = current_context()
        assert context is not None, "attention outside of a forward context"
        rows = qkv(hidden_states.reshape(-1, hidden_states.shape[-1]))
        cos, sin = (angles.reshape(-1, dim).contiguous() for angles in position_embeddings)
        keys, values = (tensors[layer].flatten(0, 1) for tensors in (context.kv_cache.keys, context.kv_cache.values))
        rotate_and_store(rows, cos, sin, context.kv_slots, keys, values, num_heads=num_heads)
        query = rows[:, : num_heads * dim].view(-1, num_heads, dim)
        attended = attend(context, layer, query, ScoreRule(scale, window()))
        return out(attended.flatten(1)).view(hidden_states.shape), None

    return forward


def decoder_forward(norm: Forward, attention: Forward, mlp_norm: Forward, mlp: Forward) -> Forward:
    """Llama's pre-norm decoder layer, straight through its parts' fused forwards.

    Calling a module costs as much as a small op does; and each part's output is its own to be added to.
    """

    def forward(
        hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_unused: object
    ) -> torch.Tensor:
        attended, _weights = attention(norm(hidden_states), position_embeddings)
        attended += hidden_states
        result: torch.Tensor = mlp(mlp_norm(attended))
        result += attended
        return result

    return forward
