"""Paged attention equals attention written down naively: windows, caps, sinks, grouped heads, chunks and decodes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.errors import ModelUnsupported
from loramux.model.attention import check_arguments, paged_attention
from loramux.model.batch_inputs import build_inputs
from loramux.model.forward_context import current_context, forward_context
from loramux.model.kv_cache import KVCache, LayerShape

NUM_KV_HEADS, KEY_DIM, VALUE_DIM, BLOCK_SIZE = 2, 8, 6, 4


@dataclass(frozen=True)
class Rule:
    """What the layer asks for."""

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False


RULES = {
    "plain": Rule(),
    "scaled": Rule(scaling=0.3),
    "window": Rule(window=3),
    "window of one": Rule(window=1),
    "softcap": Rule(softcap=2.0),
    "sinks": Rule(has_sinks=True),
    "everything": Rule(scaling=0.5, window=5, softcap=3.0, has_sinks=True),
}


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, sinks: torch.Tensor | None
) -> torch.Tensor:
    """One sequence, position by position: query [length, num_heads, dim]; returns [length, num_heads, value_dim]."""
    length, num_heads, dim = query.shape
    out = torch.zeros(length, num_heads, value.shape[-1])
    scale = dim**-0.5 if rule.scaling is None else rule.scaling
    for position in range(length):
        first = 0 if rule.window is None else max(0, position - rule.window + 1)
        for head in range(num_heads):
            kv_head = head // (num_heads // key.shape[1])
            scores = key[first : position + 1, kv_head] @ query[position, head] * scale
            if rule.softcap is not None:
                scores = rule.softcap * torch.tanh(scores / rule.softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1]])
            weights = scores.softmax(dim=0)[: position + 1 - first]
            out[position, head] = weights @ value[first : position + 1, kv_head]
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_equals_naive_attention_over_chunks_and_decodes(name: str, group: int) -> None:
    """Three sequences of different lengths, in blocks out of order: a chunk each, then a longer one, then decodes."""
    rule = RULES[name]
    torch.manual_seed(0)
    num_heads = NUM_KV_HEADS * group
    sinks = torch.randn(num_heads) if rule.has_sinks else None
    totals = (13, 9, 6)
    tables = ((9, 3, 11, 0), (5, 1, 7), (2, 8))
    queries = [torch.randn(total, num_heads, KEY_DIM) for total in totals]
    keys = [torch.randn(total, NUM_KV_HEADS, KEY_DIM) for total in totals]
    values = [torch.randn(total, NUM_KV_HEADS, VALUE_DIM) for total in totals]
    device = torch.device("cpu")
    shape = LayerShape(NUM_KV_HEADS, KEY_DIM, VALUE_DIM)
    cache = KVCache([shape], num_blocks=12, block_size=BLOCK_SIZE, dtype=torch.float32, device=device)
    cache.keys[0].fill_(1e4)  # what earlier owners left
    layer = torch.nn.Module()
    layer.layer_idx = 0  # type: ignore[assignment]
    got = [torch.full((total, num_heads, VALUE_DIM), torch.nan) for total in totals]
    for step in ([(0, 5), (0, 1), (0, 4)], [(5, 12), (1, 8), (4, 5)], [(12, 13), (8, 9), (5, 6)]):
        sequences = [
            ScheduledSequence(str(index), (0,) * (end - start), start, tables[index], BASE_SLOT, 1, samples=True)
            for index, (start, end) in enumerate(step)
        ]
        sequences = [
            ScheduledSequence(
                s.request_id, s.token_ids, s.position, s.block_table[: -(-end // BLOCK_SIZE)], s.slot, 1, samples=True
            )
            for s, (_start, end) in zip(sequences, step, strict=True)
        ]
        inputs = build_inputs(sequences, cache, device, has_lora=False)

        def rows(tensors: list[torch.Tensor], step: list[tuple[int, int]] = step) -> torch.Tensor:
            parts = [tensor[start:end] for tensor, (start, end) in zip(tensors, step, strict=True)]
            return torch.cat(parts).transpose(0, 1)[None]

        with forward_context(inputs.context):
            output, _weights = paged_attention(
                layer,
                rows(queries),
                rows(keys),
                rows(values),
                None,
                scaling=rule.scaling,
                sliding_window=rule.window,
                softcap=rule.softcap,
                s_aux=sinks,
            )
        for index, part in enumerate(output[0].split([end - start for start, end in step])):
            got[index][step[index][0] : step[index][1]] = part

    for index in range(len(totals)):
        expected = naive(queries[index], keys[index], values[index], rule, sinks)
        torch.testing.assert_close(got[index], expected, atol=1e-5, rtol=1e-5)


def test_a_mask_of_the_models_own_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="build a mask of their own"):
        check_arguments(torch.zeros(1), {})


def test_an_argument_of_unknown_meaning_is_refused_by_name() -> None:
    with pytest.raises(ModelUnsupported, match="pass 'attention_chunk_size'"):
        check_arguments(None, {"attention_chunk_size": 128})


def test_arguments_that_mean_nothing_here_are_taken() -> None:
    check_arguments(None, {"dropout": 0.1, "is_causal": True, "novelty": None, "switched_off": False})


def test_forward_passes_do_not_nest() -> None:
    shape = LayerShape(1, 1, 1)
    cache = KVCache([shape], num_blocks=1, block_size=4, dtype=torch.float32, device=torch.device("cpu"))
    one = ScheduledSequence("x", (1,), 0, (0,), BASE_SLOT, 1, samples=True)
    context = build_inputs([one], cache, torch.device("cpu"), has_lora=False).context

    with forward_context(context), pytest.raises(RuntimeError, match="already under way"), forward_context(context):
        pass
    assert current_context() is None
