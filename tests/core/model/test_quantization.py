"""Weights rounded to int8: what the server then computes, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from loramux import EngineArgs, LLMEngine, LoRARequest
from loramux.errors import ConfigInvalid, ModelUnsupported
from loramux.model import runner as runner_module
from loramux.model.fused.fuse import FusedModel
from loramux.model.loader import load_model
from loramux.model.runner import ModelRunner
from loramux_kernels import quantize_int8
from tiny_engines import Reference, engine_args, greedy, run
from tiny_models import build_model

MakeAdapter = Callable[..., Path]

UP = "model.layers.0.mlp.up_proj"
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]


def runner_of(folder: Path) -> ModelRunner:
    args = EngineArgs(model=str(folder), quantization="int8", max_model_len=64)
    return ModelRunner(load_model(args), args)


def save_rounded(folder: Path, into: Path) -> Path:
    """A checkpoint whose linear weights are what int8 makes of those in `folder`; the embedding keeps its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(quantize_int8(module.weight.detach()).dequantize())
    model.config.tie_word_embeddings = False
    model.save_pretrained(into)
    return into


def test_answers_are_those_of_transformers_and_peft_on_the_rounded_weights(
    tiny_llama: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    reference = Reference(save_rounded(tiny_llama, tmp_path / "rounded"))
    engine = LLMEngine(engine_args(tiny_llama, quantization="int8"))
    adapter = make_adapter("r8", rank=8, seed=1)
    engine.add_request("base", PROMPT, greedy())
    engine.add_request("lora", PROMPT, greedy(), LoRARequest("r8", 1, str(adapter)))

    outputs = run(engine)

    assert outputs["base"].outputs[0].token_ids == reference.greedy(PROMPT, 6)
    assert outputs["lora"].outputs[0].token_ids == reference.greedy(PROMPT, 6, adapter)
    assert engine.summary().quantization == "int8"


def test_linear_layers_are_rounded_and_nothing_else(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with caplog.at_level(logging.INFO):
        runner = runner_of(tiny_llama)

    rounded = quantize_int8(original.get_submodule(UP).weight.detach()).dequantize()
    assert torch.equal(runner.base_weight(UP), rounded)
    assert torch.equal(runner.base_weight("model.embed_tokens"), original.get_input_embeddings().weight)
    num_weights = sum(module.weight.numel() for module in original.modules() if isinstance(module, nn.Linear))
    assert f"weights quantized form=int8 weights={num_weights} " in caplog.text


def test_an_lm_head_that_shares_the_embedding_leaves_it_as_it_was(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "tied", tie_word_embeddings=True)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight
    runner = runner_of(folder)
    assert torch.equal(runner.loaded.model.get_input_embeddings().weight, original)
    assert torch.equal(runner.base_weight("lm_head"), original)


def test_a_dtype_that_has_no_int8_form_is_refused_before_loading(tiny_llama: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"quantization 'int8' works on device cpu in dtype float32.* bfloat16"):
        load_model(EngineArgs(model=str(tiny_llama), quantization="int8", dtype="bfloat16"))


def test_a_model_of_which_nothing_can_be_rounded_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "fuse", lambda _model, _flat: FusedModel())
    with pytest.raises(ModelUnsupported, match="none of its layers has a form in int8; leave quantization out"):
        runner_of(tiny_llama)
