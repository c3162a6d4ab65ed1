"""Paged attention behind transformers' attention interface: the model's own layers call it, the cache is ours.

New keys and values are written to their blocks first; then each query attends to its sequence's blocks. Grouped query
heads are folded into query rows, so no key or value is ever repeated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from loramux.errors import ModelUnsupported
from loramux.model.forward_context import DecodeGroup, ForwardContext, current_context
from loramux_kernels import PrefillBatch, ScoreRule, paged_decode, paged_prefill
from loramux_kernels.attention import has_loop
from loramux_kernels.backend import use_triton
from loramux_kernels.recording import new_rows

ATTENTION_NAME = "loramux_paged"

# What attention layers pass besides the named parameters, and what never changes a causal forward pass.
HARMLESS_ARGUMENTS = frozenset(
    {
        "dropout",
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "is_causal",
        "layer_idx",
        "past_key_values",
        "past_key_value",
    }
)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **arguments: object,
) -> tuple[torch.Tensor, None]:
    """Attend over the paged cache of the current forward context.

    query: [1, num_heads, num_tokens, key_dim]; key, value: [1, num_kv_heads, num_tokens, width]; returns
    [1, num_tokens, num_heads, value_dim]. softcap: tanh cap of the scores (Gemma 2). s_aux: [num_heads], one extra
    score per head that takes part in the softmax and has no value (attention sinks of gpt-oss).
    Raises ModelUnsupported for an argument whose meaning it does not know.
    """
    context = current_context()
    assert context is not None, "attention outside of a forward context"
    check_arguments(attention_mask, arguments)
    if context.windows is not None and sliding_window is not None:
        context.windows.passed.add(sliding_window)
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # transformers sets it on every attention layer
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [num_tokens, heads, width]
    context.kv_cache.write(layer, key, value, context.kv_slots)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = ScoreRule(scale, sliding_window, softcap, s_aux)
    num_tokens, num_heads, _dim = query.shape
    return attend(context, layer, query.flatten(1), num_heads, rule).view(1, num_tokens, num_heads, -1), None


def attend(context: ForwardContext, layer: int, query: torch.Tensor, num_heads: int, rule: ScoreRule) -> torch.Tensor:
    """Attend over the cache, which holds this pass's keys and values already.

    query: [num_tokens, num_heads * key_dim], whose rows may lie apart; returns [num_tokens, num_heads * value_dim].
    """
    keys, values = context.kv_cache.keys[layer], context.kv_cache.values[layer]
    output = new_rows(query, len(query), num_heads * values.shape[-1])
    heads, attended = query.unflatten(1, (num_heads, -1)), output.view(len(output), num_heads, -1)  # type: ignore[no-untyped-call]
    reads_blocks = use_triton(query) or has_loop(query, keys, values, rule)
    if context.prefills is not None:
        if reads_blocks:
            paged_prefill(query, keys, values, context.prefills, output, rule)
        else:
            _prefill_each(context, layer, heads, context.prefills, attended, rule)
    for group in context.decodes:
        if reads_blocks:
            paged_decode(query, keys, values, group.block_ids, group.lengths, group.rows, output, rule)
        else:
            attended[group.rows] = _decode(context, layer, heads[group.rows], group, rule)
    return output


def _weigh(
    rule: ScoreRule, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return [batch, kv_heads, group * rows, value_dim].

    query: [batch, kv_heads, group * rows, dim]; key, value: [batch, kv_heads, length, width];
    mask: additive, broadcastable to [batch, 1, group * rows, length].
    """
    if rule.is_plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rule.scale)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores + mask
    if rule.sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        batch, num_kv_heads, rows, _length = scores.shape
        group = rule.sinks.numel() // num_kv_heads
        sinks = rule.sinks.float().view(1, num_kv_heads, group, 1, 1).expand(batch, -1, -1, rows // group, 1)
        weights = torch.cat([scores, sinks.reshape(batch, num_kv_heads, rows, 1)], dim=-1).softmax(dim=-1)[..., :-1]
    return torch.matmul(weights.to(value.dtype), value)


def check_arguments(attention_mask: torch.Tensor | None, arguments: dict[str, object]) -> None:
    """Raise ModelUnsupported when a layer hands over something that would change the result and is not handled."""
    if attention_mask is not None:
        raise ModelUnsupported("its attention layers build a mask of their own")
    for name, value in arguments.items():
        if name not in HARMLESS_ARGUMENTS and value is not None and value is not False:
            raise ModelUnsupported(f"its attention layers pass {name!r}, which is not supported")


def _prefill_each(
    context: ForwardContext,
    layer: int,
    query: torch.Tensor,
    batch: PrefillBatch,
    attended: torch.Tensor,
    rule: ScoreRule,
) -> None:
    """query: [num_tokens, num_heads, dim]; attended: [num_tokens, num_heads, value_dim], of which chunks are set."""
    chunks = zip(batch.starts, batch.counts, batch.contexts, batch.block_tables, strict=True)
    for start, count, context_len, table in chunks:
        length = context_len + count
        key, value = context.kv_cache.read(layer, table[: -(-length // context.kv_cache.block_size)])
        key, value = (kept[:length].to(query.dtype).transpose(0, 1)[None] for kept in (key, value))
        num_kv_heads, num_heads = key.shape[1], query.shape[1]
        group = num_heads // num_kv_heads
        folded = query[start : start + count].view(count, num_kv_heads, group, -1).permute(1, 2, 0, 3)
        mask = _prefill_mask(context, start, range(context_len, length), group, rule.window, query)
        out = _weigh(rule, folded.reshape(1, num_kv_heads, group * count, -1), key, value, mask)
        attended[start : start + count] = out.view(num_kv_heads, group, count, -1).permute(2, 0, 1, 3).flatten(1, 2)


def _decode(
    context: ForwardContext, layer: int, query: torch.Tensor, group: DecodeGroup, rule: ScoreRule
) -> torch.Tensor:
    """query: [n, num_heads, dim], one row per sequence; returns [n, num_heads, value_dim]."""
    num_sequences, num_heads, _dim = query.shape
    key, value = context.kv_cache.read(layer, group.block_ids)  # [n, padded length, kv_heads, width]
    key, value = (kept.to(query.dtype).transpose(1, 2) for kept in (key, value))
    folded = query.view(num_sequences, key.shape[1], num_heads // key.shape[1], -1)
    mask = _decode_mask(context, group, key.shape[2], rule.window, query)
    return _weigh(rule, folded, key, value, mask).reshape(num_sequences, num_heads, -1)


def _prefill_mask(
    context: ForwardContext, start: int, positions: range, group: int, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """[1, 1, group * rows, length]: each row of the chunk at `start` sees up to its own position, within the window."""
    cached = context.masks.get((start, window))
    if cached is not None:
        return cached
    keys = torch.arange(positions.stop, device=like.device)
    queries = keys[positions.start :, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = _additive(hidden, like).expand(group, -1, -1).reshape(1, 1, group * len(positions), -1)
    context.masks[start, window] = mask
    return mask


def _decode_mask(
    context: ForwardContext, group: DecodeGroup, padded_length: int, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """[n, 1, 1, padded_length]: sequence i sees its first lengths[i] positions, within the window."""
    cached = context.masks.get((-1 - padded_length, window))
    if cached is not None:
        return cached
    keys = torch.arange(padded_length, device=like.device)
    lengths = group.lengths[:, None]
    hidden = keys >= lengths
    if window is not None:
        hidden |= keys <= lengths - 1 - window
    mask = _additive(hidden, like)[:, None, None, :]
    context.masks[-1 - padded_length, window] = mask
    return mask


def _additive(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _no_mask(*_arguments: object, local_size: int | None = None, **_named: object) -> None:
    """Stand in for transformers' mask builders: masks are ours; `local_size` is the window asked for, 0 for none."""
    context = current_context()
    if context is not None and context.windows is not None and local_size:
        context.windows.asked.add(local_size)


AttentionInterface.register(ATTENTION_NAME, paged_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
