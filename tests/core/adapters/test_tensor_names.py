"""Tensor names as PEFT writes them, and the ones that mean more than plain LoRA."""

from __future__ import annotations

import pytest

from loramux.adapters.tensor_names import TensorRole, parse_tensor_name

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (f"base_model.model.{Q_PROJ}.lora_A.weight", TensorRole(Q_PROJ, "A", is_embedding=False)),
        (f"{Q_PROJ}.lora_B.weight", TensorRole(Q_PROJ, "B", is_embedding=False)),
        (f"base_model.model.{Q_PROJ}.lora_A.default.weight", TensorRole(Q_PROJ, "A", is_embedding=False)),
        ("base_model.model.model.wte.lora_embedding_A", TensorRole("model.wte", "A", is_embedding=True)),
        ("base_model.model.model.wte.lora_embedding_B.default", TensorRole("model.wte", "B", is_embedding=True)),
        ("base_model.model.lm_head.base_layer.weight", TensorRole("lm_head", "base", is_embedding=False)),
        ("base_model.model.lm_head.weight", TensorRole("lm_head", "base", is_embedding=False)),
    ],
)
def test_a_name_states_module_and_part(name: str, role: TensorRole) -> None:
    assert parse_tensor_name(name) == role


@pytest.mark.parametrize(
    "ending",
    [
        "lora_magnitude_vector", "lora_B.bias", "lora_A", "lora_C.weight_", "lora_diag", "lora_velora_embed",
        "token_adapter.trainable_tokens_delta", "lora_monteclora_sampler.x", "bias", "lora_A.weight\n",
        "lora_embedding_A.bias",
    ],
)  # fmt: skip
def test_other_tensors_have_no_role(ending: str) -> None:
    assert parse_tensor_name(f"base_model.model.{Q_PROJ}.{ending}") is None


def test_another_adapters_name_is_no_part_of_ours() -> None:
    role = parse_tensor_name(f"{Q_PROJ}.lora_A.other.weight")
    assert role == TensorRole(f"{Q_PROJ}.lora_A.other", "base", is_embedding=False)  # and that is no module of a base
