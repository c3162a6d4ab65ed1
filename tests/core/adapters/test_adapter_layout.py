"""AdapterLayout: every tensor has one place in our base model, with the config's rank and the base's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from loramux.adapters.adapter_layout import AdapterLayout, lay_out
from loramux.adapters.peft_config import parse_peft_config
from loramux.adapters.refusal import Refusal
from loramux.adapters.safetensors_header import TensorEntry
from loramux.adapters.weights import BaseModelSpec, LoRATarget

BASE = BaseModelSpec(
    names=("acme/tiny",),
    architecture="TinyForCausalLM",
    targets={
        "wte": LoRATarget("embedding", 96, 64),
        "h.0.q": LoRATarget("linear", 64, 32),
        "h.0.v": LoRATarget("linear", 64, 32),
        "h.1.q": LoRATarget("linear", 64, 32),
        "h.1.v": LoRATarget("linear", 64, 32),
        "lm_head": LoRATarget("lm_head", 64, 96),
    },
    unservable={"h.0.experts": "experts are one 3-D parameter; LoRA on them is not supported."},
    vocab_size=96,
)
Shapes = dict[str, tuple[int, ...]]


def pairs(*modules: str, rank: int = 4) -> Shapes:
    shapes: Shapes = {}
    for module in modules:
        shapes |= {f"{module}.lora_A.weight": (rank, 64), f"{module}.lora_B.weight": (32, rank)}
    return shapes


EMBEDDING: Shapes = {"wte.lora_embedding_A": (4, 96), "wte.lora_embedding_B": (64, 4)}
LM_HEAD: Shapes = {"lm_head.lora_A.weight": (4, 64), "lm_head.lora_B.weight": (96, 4)}


def lay(shapes: Shapes, *, max_lora_rank: int = 8, base: BaseModelSpec = BASE, **fields: Any) -> AdapterLayout:
    config = parse_peft_config(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | fields).encode())
    entries = [TensorEntry(name, torch.float32, shape, 0, 0) for name, shape in shapes.items()]
    return lay_out(entries, config=config, base=base, max_lora_rank=max_lora_rank)


def refusal(shapes: Shapes, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        lay(shapes, **options)
    return caught.value


def test_pairs_come_in_the_order_of_the_base() -> None:
    layout = lay(LM_HEAD | pairs("h.1.q", "h.0.q") | EMBEDDING)
    assert [pair.module for pair in layout.pairs] == ["wte", "h.0.q", "h.1.q", "lm_head"]
    assert [pair.scaling for pair in layout.pairs] == [2.0] * 4


def test_ranks_and_alphas_by_module_make_the_scaling() -> None:
    shapes = pairs("h.0.q") | pairs("h.1.q", rank=8)
    layout = lay(shapes, rank_pattern={r"h\.1\..*": 8}, alpha_pattern={"h.0.q": 12}, use_rslora=True)
    assert [pair.scaling for pair in layout.pairs] == [12 / 4**0.5, 8 / 8**0.5]


def test_a_file_without_pairs_is_empty() -> None:
    assert refusal({}).reason == "is empty: the weights file has no pair of LoRA tensors."
    assert refusal({"lm_head.base_layer.weight": (96, 64)}).reason.startswith("is empty")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("h.0.q.lora_B.weight", "module h.0.q: the weights file has its lora_A, but no lora_B."),
        ("h.0.q.lora_A.weight", "module h.0.q: the weights file has its lora_B, but no lora_A."),
    ],
)
def test_half_a_pair_is_refused(missing: str, reason: str) -> None:
    shapes = pairs("h.0.q", "h.1.q")
    del shapes[missing]
    assert refusal(shapes).reason == reason


def test_two_tensors_for_one_place_are_refused() -> None:
    twice = {"base_model.model.h.0.q.lora_A.weight": (4, 64)}
    assert refusal(pairs("h.0.q") | twice).reason == (
        "module h.0.q: the weights file has two tensors for the same part of it."
    )


def test_leftover_tensors_are_listed() -> None:
    leftover = {f"h.0.q.lora_magnitude_vector{place}": (32,) for place in range(4)}
    assert refusal(pairs("h.0.q") | leftover).reason == (
        "4 tensors are not LoRA pairs of this base model: 'h.0.q.lora_magnitude_vector0', "
        "'h.0.q.lora_magnitude_vector1', 'h.0.q.lora_magnitude_vector2', …."
    )


@pytest.mark.parametrize(
    "name",
    ["h.0.q.base_layer.weight", "h.0.q.weight", "h.0.q.lora_embedding_A", "wte.lora_A.weight", "h.0.norm.weight"],
)
def test_tensors_of_the_wrong_kind_are_leftover(name: str) -> None:
    assert refusal(pairs("h.1.q") | {name: (4, 64)}).reason == (
        f"1 tensors are not LoRA pairs of this base model: '{name}'."
    )


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_refused(bias: str) -> None:
    assert refusal(pairs("h.0.q") | {"h.0.q.bias": (32,)}, bias=bias).reason == (
        f"bias={bias} trains base biases (1 tensors); not supported."
    )
    assert lay(pairs("h.0.q"), bias=bias).pairs


def test_modules_of_another_base_are_refused() -> None:
    some = refusal(pairs("h.0.q", "h.2.q"))
    assert some.reason == "some of its modules do not exist in this base model (TinyForCausalLM): 'h.2.q'."
    assert some.code == "adapter_invalid"


def test_an_adapter_with_no_module_of_this_base_belongs_to_another() -> None:
    found = refusal(pairs("layers.0.q"))
    assert found.reason == "all of its modules do not exist in this base model (TinyForCausalLM): 'layers.0.q'."
    assert found.code == "adapter_base_mismatch"


@pytest.mark.parametrize("module", ["h.0.experts", "h.0.experts.3.w1"])
def test_unservable_targets_are_refused_with_their_reason(module: str) -> None:
    assert refusal(pairs("h.0.q", module)).reason == (
        f"module {module}: experts are one 3-D parameter; LoRA on them is not supported."
    )


def test_listed_modules_without_tensors_are_a_partial_upload() -> None:
    assert refusal(pairs("h.0.q", "h.1.q", "h.0.v"), target_modules=["q", "v", "absent"]).reason == (
        "target_modules lists 1 modules that the weights file lacks (a partial upload?): 'h.1.v'."
    )


@pytest.mark.parametrize("field", ["layers_to_transform", "exclude_modules"])
def test_listed_modules_may_lack_tensors_where_training_left_some_out(field: str) -> None:
    assert len(lay(pairs("h.0.q"), target_modules=["q"], **{field: ["x"]}).pairs) == 1


def test_modules_that_are_not_listed_are_refused() -> None:
    assert refusal(pairs("h.0.q", "h.1.q", "h.0.v"), target_modules=["q"]).reason == (
        "the weights file has modules that target_modules does not list: 'h.0.v'."
    )


def test_targets_match_by_whole_names_from_the_end() -> None:
    assert len(lay(pairs("h.0.q", "h.0.v"), target_modules=["h.0.q", "0.v"]).pairs) == 2
    assert "does not list" in refusal(pairs("h.0.q"), target_modules=["", "0", "h.0", ".q"]).reason


@pytest.mark.parametrize("targets", ["all-linear", r".*\.v$", None])
def test_targets_that_are_no_list_are_not_compared(targets: str | None) -> None:
    assert len(lay(pairs("h.0.q"), target_modules=targets).pairs) == 1


def test_a_rank_that_the_config_denies_is_refused() -> None:
    assert refusal(pairs("h.0.q", rank=6)).reason == "module h.0.q: config says r=4, tensor has 6."


def test_a_rank_above_the_servers_limit_is_refused() -> None:
    found = refusal(pairs("h.0.q", rank=16), r=16)
    assert found.reason == "rank 16 of module h.0.q exceeds max_lora_rank 8."
    assert found.code == "adapter_rank_too_high"
    assert lay(pairs("h.0.q", rank=8), r=16, rank_pattern={"q": 8}).pairs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"h.0.q.lora_A.weight": (4, 63)}, "module h.0.q: lora_A is (4, 63), expected (4, 64)."),
        ({"h.0.q.lora_A.weight": (4,)}, "module h.0.q: lora_A is (4), expected (4, 64)."),
        ({"h.0.q.lora_A.weight": ()}, "module h.0.q: lora_A is (), expected (4, 64)."),
        ({"h.0.q.lora_A.weight": (4, 64, 1)}, "module h.0.q: lora_A is (4, 64, 1), expected (4, 64)."),
        ({"h.0.q.lora_B.weight": (4, 32)}, "module h.0.q: lora_B is (4, 32), expected (32, 4)."),
        ({"wte.lora_embedding_B": (4, 64)}, "module wte: lora_embedding_B is (4, 64), expected (64, 4)."),
        ({"wte.lora_embedding_A": (4, 95)}, "module wte: lora_embedding_A is (4, 95), expected (4, 96)."),
        ({"wte.lora_embedding_A": (4, 98)}, "adapter extends the vocabulary (98 rows, base has 96)."),
        ({"lm_head.lora_B.weight": (97, 4)}, "adapter extends the vocabulary (97 rows, base has 96)."),
        ({"lm_head.base_layer.weight": (97, 64)}, "adapter extends the vocabulary (97 rows, base has 96)."),
        ({"wte.base_layer.weight": (100, 64)}, "adapter extends the vocabulary (100 rows, base has 96)."),
        ({"wte.weight": (100, 64)}, "adapter extends the vocabulary (100 rows, base has 96)."),
        (
            {"lm_head.base_layer.weight": (96, 63)},
            "module lm_head: its saved base weight differs from this base model.",
        ),
        ({"wte.base_layer.weight": (90, 64)}, "module wte: its saved base weight differs from this base model."),
        ({"wte.base_layer.weight": ()}, "module wte: its saved base weight differs from this base model."),
    ],
)
def test_shapes_are_the_bases(change: Shapes, reason: str) -> None:
    assert refusal(pairs("h.0.q") | EMBEDDING | LM_HEAD | change).reason == reason


def test_saved_base_weights_are_found_under_both_names() -> None:
    layout = lay(EMBEDDING | LM_HEAD | {"wte.base_layer.weight": (96, 64), "lm_head.weight": (96, 64)})
    assert [saved.module for saved in layout.saved_base_weights] == ["wte", "lm_head"]


def test_absurd_scaling_is_refused() -> None:
    assert refusal(pairs("h.0.q"), lora_alpha=1e6).reason == "module h.0.q: its scaling 250000 exceeds 1000."
    assert lay(pairs("h.0.q"), lora_alpha=-4000).pairs[0].scaling == -1000.0


def test_fan_in_fan_out_needs_a_base_with_conv1d() -> None:
    assert refusal(pairs("h.0.q"), fan_in_fan_out=True).reason == (
        "fan_in_fan_out=true does not fit base architecture TinyForCausalLM."
    )
    conv = BaseModelSpec(("a",), "GPT2LMHeadModel", {"h.0.q": LoRATarget("conv1d", 64, 32)}, {}, 96)
    assert lay(pairs("h.0.q"), base=conv, fan_in_fan_out=True).pairs
