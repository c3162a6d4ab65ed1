"""A family is refused by what its forward pass does, before it serves anyone; a good one is described."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from families_table import refusal
from loramux.errors import ModelUnsupported
from loramux.model.attention import ATTENTION_NAME
from loramux.model.forward_context import current_context
from loramux.model.kv_cache import LayerShape
from loramux.model.probe import probe


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION_NAME
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def model(tiny_llama: Path) -> PreTrainedModel:
    return load(tiny_llama)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_good_model_passes_and_is_described(tiny_llama: Path, dtype: torch.dtype) -> None:
    result = probe(load(tiny_llama, dtype), "m")

    assert result.layers == (LayerShape(num_kv_heads=2, key_dim=16, value_dim=16),) * 2
    assert {"model.embed_tokens", "lm_head", "model.layers.1.mlp.down_proj"} <= result.flat_modules
    assert len(result.flat_modules) == 2 + 2 * 7


def test_the_probe_leaves_no_trace(model: PreTrainedModel) -> None:
    probe(model, "m")

    assert model.config._attn_implementation == ATTENTION_NAME
    assert not any(module._forward_hooks for module in model.modules())
    assert current_context() is None


@pytest.mark.parametrize("family", ["bloom", "falcon", "mamba2", "recurrent_gemma", "llama4_text"])
def test_a_family_whose_attention_is_another_is_refused_with_a_reason(family: str) -> None:
    assert "attention" in refusal(family)


def test_attention_that_means_something_else_is_refused_by_its_numbers(model: PreTrainedModel) -> None:
    """As a family would that adds to the scores where nobody sees it."""
    layer = model.model.layers[1].self_attn
    forward = layer.forward

    def scaled_when_paged(*arguments: object, **named: object) -> object:
        layer.scaling = 0.25 if model.config._attn_implementation != ATTENTION_NAME else 0.3
        return forward(*arguments, **named)

    layer.forward = scaled_when_paged

    with pytest.raises(ModelUnsupported, match=r"model 'm' \(LlamaForCausalLM\) .* paged logits differ by"):
        probe(model, "m")


def test_attention_called_twice_in_a_pass_is_refused(model: PreTrainedModel) -> None:
    layer = model.model.layers[0].self_attn
    forward = layer.forward

    def twice(*arguments: object, **named: object) -> object:
        forward(*arguments, **named)
        return forward(*arguments, **named)

    layer.forward = twice

    with pytest.raises(ModelUnsupported, match=r"layers \[0\] call attention more than once per pass"):
        probe(model, "m")


def test_a_layer_that_never_calls_attention_is_refused(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.forward = lambda hidden_states, **_named: (hidden_states, None)

    with pytest.raises(ModelUnsupported, match=r"layers \[1\] keep state outside the attention interface"):
        probe(model, "m")


def test_a_module_that_sees_rows_in_another_order_is_not_flat(model: PreTrainedModel) -> None:
    """As a router's experts do: LoRA on it would mix up whose row is whose."""
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: torch.cat([forward(hidden[:, :1]), forward(hidden[:, 1:])], dim=1)

    flat = probe(model, "m").flat_modules

    assert not any(path.startswith("model.layers.0.mlp") for path in flat)
    assert "model.layers.1.mlp.up_proj" in flat
