"""Layers that most families share, in few calls: RMSNorm, gated MLP, rotary attention, the decoder layer around them.

They work on rows [num_tokens, hidden]; `module_forward` makes a module's forward of them. A step on a CPU makes some
thousand calls, each of which costs as much as a small op, so nothing here is viewed, checked or called twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from loramux.model.attention import attend
from loramux.model.forward_context import current_context
from loramux.model.fused.linear import FusedLinear
from loramux_kernels import ScoreRule, add_rows, rms_norm, rotate_and_store, silu_mul

Rows = Callable[[torch.Tensor], torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [1, num_tokens, head_dim]
Attention = Callable[[torch.Tensor, Angles], torch.Tensor]
Layers = Callable[[torch.Tensor, Angles, torch.Tensor | None], torch.Tensor]  # see LayerStack


def module_forward(compute: Rows) -> Callable[[torch.Tensor], torch.Tensor]:
    """A module's forward: [..., in] to [..., out]."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = compute(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])  # lm_head may be given no rows

    return forward


def norm_rows(weight: torch.Tensor, eps: float) -> Rows:
    """Llama's RMSNorm."""
    return lambda rows: rms_norm(rows, weight, eps)


def mlp_rows(gate_up: FusedLinear, down: FusedLinear, activation: nn.Module) -> Rows:
    """`down(activation(gate(x)) * up(x))`."""
    if type(activation).__name__ in ("SiLU", "SiLUActivation"):
        return lambda rows: down(silu_mul(gate_up(rows)))

    def compute(rows: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up(rows).chunk(2, dim=-1)
        return down(activation(gate) * up)

    return compute


def attention_rows(
    module: nn.Module, qkv: FusedLinear, out: FusedLinear, window: Callable[[], int | None]
) -> Attention:
    """Llama's attention over the paged cache: queries and keys are rotated where the product left them."""
    layer, dim, scale = int(module.layer_idx), int(module.head_dim), float(module.scaling)  # type: ignore[arg-type]
    num_heads = out.in_features // dim

    def compute(rows: torch.Tensor, angles: Angles) -> torch.Tensor:
        context = current_context()
        assert context is not None, "attention outside of a forward context"
        projected = qkv(rows)
        cos, sin = context.angle_rows(angles)
        keys, values = context.kv_cache.keys[layer], context.kv_cache.values[layer]
        rotate_and_store(projected, cos, sin, context.kv_slots, keys, values, num_heads=num_heads)
        query = projected[:, : num_heads * dim]
        return out(attend(context, layer, query, num_heads, ScoreRule(scale, window())))

    return compute


def attention_forward(compute: Attention) -> Callable[..., Any]:
    """The forward of an attention module, which is given by name what only other forms of attention need."""

    def forward(hidden_states: torch.Tensor, position_embeddings: Angles, **_unused: object) -> Any:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return compute(rows, position_embeddings).view(hidden_states.shape), None

    return forward


def decoder_rows(norm: Rows, attention: Attention, mlp_norm: Rows, mlp: Rows) -> Attention:
    """Llama's pre-norm decoder layer, straight through its parts; each part's output is its own."""

    def compute(rows: torch.Tensor, angles: Angles) -> torch.Tensor:
        attended = attention(norm(rows), angles)
        add_rows(attended, rows)
        result = mlp(mlp_norm(attended))
        add_rows(result, attended)
        return result

    return compute


def decoder_forward(compute: Attention) -> Callable[..., Any]:
    """The forward of a decoder layer."""

    def forward(hidden_states: torch.Tensor, position_embeddings: Angles, **_unused: object) -> torch.Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return compute(rows, position_embeddings).view(hidden_states.shape)

    return forward


def model_forward(embedding: nn.Module, rotary: nn.Module, layers: Layers) -> Callable[..., BaseModelOutputWithPast]:
    """The forward of a model from token ids to what lm_head is given: no masks, no caches, no outputs in between.

    layers: all of them, and the norm behind them.
    """

    def forward(
        input_ids: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        **_unused: object,
    ) -> BaseModelOutputWithPast:
        hidden = embedding(input_ids) if inputs_embeds is None else inputs_embeds
        rows = layers(hidden.reshape(-1, hidden.shape[-1]), rotary(hidden, position_ids=position_ids), None)
        return BaseModelOutputWithPast(last_hidden_state=rows.view(hidden.shape))

    return forward


def causal_forward(embedding: nn.Module, rotary: nn.Module, layers: Layers) -> Callable[..., CausalLMOutputWithPast]:
    """The forward of a causal LM on a flattened batch, from token ids to the logits of the rows that are wanted.

    layers: all of them, and the norm and lm_head behind them. logits_to_keep: the numbers of rows, or 0 for all.
    """

    def forward(
        input_ids: torch.Tensor, *, position_ids: torch.Tensor, logits_to_keep: torch.Tensor | int, **_unused: object
    ) -> CausalLMOutputWithPast:
        hidden = embedding(input_ids)
        assert isinstance(logits_to_keep, torch.Tensor) or logits_to_keep == 0
        wanted = None if isinstance(logits_to_keep, int) else logits_to_keep
        logits = layers(hidden[0], rotary(hidden, position_ids=position_ids), wanted)
        return CausalLMOutputWithPast(logits=logits[None])

    return forward
