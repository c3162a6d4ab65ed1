"""The faster forms of layers: which models get them, and that nothing but speed changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRMSNorm

from loramux.config import EngineArgs
from loramux.errors import ModelUnsupported
from loramux.model import runner as runner_module
from loramux.model.attention import ATTENTION_NAME
from loramux.model.fused.fuse import FusedModel, fuse
from loramux.model.fused.linear import FusedLinear
from loramux.model.fused.weight_forms import JoinedWeight, form_of
from loramux.model.host_memory import HugePages
from loramux.model.loader import load_model
from loramux.model.probe import ProbeResult, check_fused, probe
from loramux.model.runner import ModelRunner
from tiny_models import build_model

UP = "model.layers.0.mlp.up_proj"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION_NAME
    )
    return model.eval().requires_grad_(False)


def fused_kinds(model: PreTrainedModel) -> set[str]:
    """The classes of which at least one module computes by another forward than its own."""
    return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention", "LlamaDecoderLayer", "LlamaForCausalLM", "Linear"}),
        (
            "mistral",
            {"MistralRMSNorm", "MistralMLP", "MistralAttention", "MistralDecoderLayer", "MistralForCausalLM", "Linear"},
        ),
        ("qwen2", {"Qwen2RMSNorm", "Qwen2MLP", "Qwen2Attention", "Qwen2DecoderLayer", "Qwen2ForCausalLM", "Linear"}),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP", "Linear"}),
        ("gemma2", {"Gemma2MLP", "Linear"}),
        ("gpt2", {"Linear"}),
    ],
)
def test_a_family_gets_the_forms_of_the_code_that_it_shares_and_keeps_its_numbers(
    tmp_path: Path, family: str, fused: set[str]
) -> None:
    model = load(build_model(tmp_path / family, family))
    probed = probe(model, family)

    replaced = fuse(model, probed.flat_modules)

    assert fused_kinds(model) == fused
    check_fused(model, probed)
    replaced.pack()
    check_fused(model, probed)


def test_a_layer_that_differs_by_one_constant_keeps_its_own_forward(tiny_llama: Path) -> None:
    class Doubled(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden_states)

    model = load(tiny_llama)
    model.model.norm.__class__ = Doubled
    probed = probe(model, "m")

    fuse(model, probed.flat_modules)

    assert "forward" not in vars(model.model.norm)
    assert "forward" in vars(model.model.layers[0].input_layernorm)
    check_fused(model, probed)


def runner_of_spoiled(
    folder: Path, spoil: Callable[[PreTrainedModel, FusedModel], None], monkeypatch: pytest.MonkeyPatch
) -> ModelRunner:
    """A runner whose model is spoiled as soon as it is fused."""

    def fuse_wrongly(model: PreTrainedModel, flat_modules: frozenset[str]) -> FusedModel:
        fused = fuse(model, flat_modules)
        spoil(model, fused)
        return fused

    monkeypatch.setattr(runner_module, "fuse", fuse_wrongly)
    args = EngineArgs(model=str(folder), max_model_len=64)
    return ModelRunner(load_model(args), args)


def test_what_computes_something_else_is_found_out_and_undone(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(model: PreTrainedModel, fused: FusedModel) -> None:
        linear = fused.linears[model.lm_head]
        linear._bias = torch.ones(linear.out_features)

    runner = runner_of_spoiled(tiny_llama, spoil, monkeypatch)

    assert fused_kinds(runner.loaded.model) == set()
    assert "layers not fused model=LlamaForCausalLM" in caplog.text
    assert "its paged logits differ by" in caplog.text


def test_a_model_that_hands_over_embeddings_goes_through_its_layers_too(tiny_llama: Path) -> None:
    class Embedding(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, logits_to_keep: object = 0, **inputs: Any) -> CausalLMOutputWithPast:
            embedded = self.model.embed_tokens(input_ids)
            hidden = self.model(inputs_embeds=embedded, **inputs).last_hidden_state
            wanted = hidden if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
            return CausalLMOutputWithPast(logits=self.lm_head(wanted))

    model = load(tiny_llama)
    model.__class__ = Embedding
    probed = probe(model, "m")
    fused = fuse(model, probed.flat_modules)

    assert fused.stack is not None
    assert fused_kinds(model) == {
        *("LlamaRMSNorm", "LlamaMLP", "LlamaAttention", "LlamaDecoderLayer", "LlamaModel", "Linear")
    }
    check_fused(model, probed)


def test_what_fails_where_layers_are_fused_is_undone(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = runner_of_spoiled(tiny_llama, lambda model, fused: fused.replace(model, lambda: None), monkeypatch)

    assert fused_kinds(runner.loaded.model) == set()
    assert 'layers not fused model=LlamaForCausalLM reason="TypeError' in caplog.text


def test_the_check_needs_the_models_own_numbers(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    probed = probe(model, "m")
    with pytest.raises(ModelUnsupported, match="differ"):
        check_fused(model, ProbeResult(probed.layers, probed.flat_modules, probed.logits + 1))


def linears(*widths: int, bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(sum(widths))
    return [nn.Linear(48, width, bias=bias).requires_grad_(False) for width in widths]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widths", [(64,), (64, 16, 16), (1, 2)], ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 33])
def test_one_product_gives_what_its_members_give(widths: tuple[int, ...], num_rows: int, bias: bool) -> None:
    members = linears(*widths, bias=bias)
    x = torch.randn(num_rows, 48)
    expected = torch.cat([member(x) for member in members], dim=-1)
    product = FusedLinear(members)

    torch.testing.assert_close(product(x), expected)
    product.pack()
    torch.testing.assert_close(product(x), expected)


def test_packed_weights_let_go_of_the_members_own_and_can_be_read_back() -> None:
    members = linears(64, 16)
    weights = [member.weight.clone() for member in members]
    product = FusedLinear(members)
    assert torch.equal(product.weight_of(members[1]), weights[1])

    product.pack()

    assert all(member.weight.is_meta for member in members)
    for member, weight in zip(members, weights, strict=True):
        assert torch.equal(product.weight_of(member), weight)


def test_a_packed_row_is_the_same_to_the_bit_whatever_rows_are_beside_it() -> None:
    product = FusedLinear([nn.Linear(576, width, bias=False).requires_grad_(False) for width in (576, 192, 192)])
    product.pack()
    x = torch.randn(130, 576)
    together = product(x)
    for start, stop in ((0, 1), (5, 7), (60, 63), (64, 130)):
        assert torch.equal(product(x[start:stop]), together[start:stop])


def test_sixteen_bit_weights_of_one_input_are_joined_and_one_alone_stays_as_it_is() -> None:
    members = [member.to(torch.bfloat16) for member in linears(64, 16)]
    weights = [member.weight.clone() for member in members]
    x = torch.randn(3, 48, dtype=torch.bfloat16)
    expected = torch.cat([member(x) for member in members], dim=-1)
    product, alone = FusedLinear(members), FusedLinear(linears(8))
    alone.members[0].to(torch.bfloat16)

    product.pack()
    alone.pack()

    torch.testing.assert_close(product(x), expected)
    assert torch.equal(product.weight_of(members[1]), weights[1])
    assert [member.weight.is_meta for member in (*members, *alone.members)] == [True, True, False]


def test_on_a_gpu_they_are_joined_too() -> None:
    """No GPU is needed to see which form is chosen."""
    elsewhere = [member.to("meta").weight for member in linears(64, 16)]
    assert isinstance(form_of(elsewhere, None, HugePages()), JoinedWeight)
    assert form_of(elsewhere[:1], None, HugePages()) is None


def test_the_runner_reads_base_weights_by_path(tiny_llama: Path) -> None:
    weight = load(tiny_llama).get_submodule(UP).weight
    runner = ModelRunner(load_model(args := EngineArgs(model=str(tiny_llama), max_model_len=64)), args)
    assert torch.equal(runner.base_weight(UP), weight)
    assert torch.equal(runner.base_weight("model.embed_tokens"), load(tiny_llama).get_input_embeddings().weight)
