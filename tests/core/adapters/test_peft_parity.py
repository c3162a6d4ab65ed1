"""W0 + scaling * B A, as read_adapter gives them, answers like PEFT: the anchor of all exactness."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux.adapters.weights import AdapterWeights

TOKENS = torch.arange(1, 41).reshape(2, 20)
TOLERANCE = 2e-6  # both are float32; the order of the sums differs


def merged(base: Any, weights: AdapterWeights) -> Any:
    """Return a copy of the base with every delta added to the weight."""
    model = copy.deepcopy(base.model)
    for path, module in weights.modules.items():
        kind = base.spec.targets[path].kind
        delta = module.scaling * (module.b @ module.a)  # [out, in]; for an embedding [dim, vocab]
        weight = model.get_submodule(path).weight
        weight.data = weight.data + (delta.T if kind in ("conv1d", "embedding") else delta)
    return model


@pytest.mark.parametrize(
    ("base_name", "fields"),
    [
        ("llama_base", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama_base", {"target_modules": "all-linear", "use_rslora": True}),
        (
            "llama_base",
            {
                "target_modules": "all-linear",
                "use_rslora": True,
                "rank_pattern": {"q_proj": 8, r".*\.layers\.1\..*(k_proj|up_proj)$": 2},
                "alpha_pattern": {"layers.0.self_attn.q_proj": 32, r".*\.layers\.[0-9]+\.mlp\..*": 3, "q_proj": 5},
            },
        ),
        ("llama_base", {"target_modules": ["embed_tokens", "lm_head", "o_proj"], "lora_alpha": 3}),
        ("llama_base", {"target_modules": ["down_proj"], "init_lora_weights": "orthogonal"}),
        ("gpt2_base", {"target_modules": ["c_attn", "c_proj", "c_fc"], "rank_pattern": {"attn.c_proj": 2}}),
    ],
)
def test_the_formula_is_pefts(
    base_name: str, fields: dict[str, Any], train: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(base_name)
    peft_model = train(base, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = peft_model(input_ids=TOKENS).logits
        plain = base.model(input_ids=TOKENS).logits
        ours = merged(base, base.read(tmp_path))(input_ids=TOKENS).logits
    assert (expected - plain).abs().max() > 1e-3, "the adapter must change something for this test to mean anything"
    assert (ours - expected).abs().max() < TOLERANCE
