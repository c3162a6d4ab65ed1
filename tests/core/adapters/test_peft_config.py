"""adapter_config.json: every field of LoraConfig is used, ignored or refused with its reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from loramux.adapters import peft_config
from loramux.adapters.peft_config import PeftConfig, parse_peft_config
from loramux.adapters.refusal import Refusal

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def parse(**fields: Any) -> PeftConfig:
    return parse_peft_config(json.dumps(PLAIN | fields).encode())


def refusal(**fields: Any) -> str:
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    assert caught.value.code == "adapter_invalid"
    return caught.value.reason


def test_every_field_of_the_installed_peft_is_known() -> None:
    from peft import LoraConfig

    names = {f.name for f in dataclasses.fields(LoraConfig)} - {"peft_version"}
    assert names <= peft_config._KNOWN


def test_the_fields_that_serving_needs() -> None:
    config = parse(use_rslora=True, base_model_name_or_path="acme/tiny", target_modules=["q_proj", "v_proj"])
    assert (config.rank, config.alpha, config.base_model_name) == (8, 16.0, "acme/tiny")
    assert config.target_modules == {"q_proj", "v_proj"}
    assert config.scaling(alpha=16, rank=4) == 8.0
    assert parse().scaling(alpha=16, rank=4) == 4.0


def test_missing_fields_have_pefts_defaults() -> None:
    config = parse_peft_config(b'{"peft_type": "LORA"}')
    assert (config.rank, config.alpha, config.bias, config.use_rslora) == (8, 8.0, "none", False)


def test_patterns_give_each_module_its_value() -> None:
    config = parse(rank_pattern={"q_proj": 2}, alpha_pattern={r".*\.1\..*": 32, "q_proj": 4})
    modules = ["layers.0.q_proj", "layers.1.q_proj", "layers.0.v_proj"]
    assert list(config.rank_pattern.for_modules(modules, default=8).values()) == [2, 2, 8]
    assert list(config.alpha_pattern.for_modules(modules, default=16).values()) == [4, 32, 16]
    assert config.max_rank == 8


@pytest.mark.parametrize("value", ["IA3", "lora", None, 1])
def test_only_lora_is_served(value: Any) -> None:
    assert refusal(peft_type=value) == f"peft_type={value!r} is not supported; only LORA adapters can be served."


@pytest.mark.parametrize("value", ["SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_other_tasks_are_refused(value: str) -> None:
    assert refusal(task_type=value) == f"task_type={value} cannot be served by a causal LM."


def test_a_missing_task_is_accepted() -> None:
    assert parse(task_type=None).rank == 8


@pytest.mark.parametrize("value", [0, -4, "8", 4.5, True, None, 10**400])
def test_r_is_a_count(value: Any) -> None:
    assert refusal(r=value).startswith("r must be a whole number of at least 1, got ")


@pytest.mark.parametrize("value", ["x", 0, True, None, 10**400])
def test_lora_alpha_is_a_number(value: Any) -> None:
    assert refusal(lora_alpha=value) == "lora_alpha must be a finite number."


def test_infinite_alpha_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^lora_alpha must be a finite number\.$"):
        parse_peft_config(b'{"peft_type": "LORA", "lora_alpha": 1e999}')


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_outside_the_grammar_are_refused(field: str) -> None:
    assert refusal(**{field: {"(a+)+X": 4}}) == f"{field} key '(a+)+X' is not a valid or affordable pattern."


def test_patterns_that_are_too_much_work_are_refused() -> None:
    config = parse(alpha_pattern={f"(.*a{place})|.*b.*": 4 for place in range(512)})
    with pytest.raises(Refusal, match=r"^alpha_pattern key .* is not a valid or affordable pattern\.$"):
        config.alpha_pattern.for_modules([f"layers.{layer}.q_proj" for layer in range(1000)], default=1)


def test_pattern_values_are_checked_like_the_fields() -> None:
    assert refusal(rank_pattern={"q_proj": 0}) == (
        "rank_pattern['q_proj'] must be a whole number of at least 1, got 0."
    )
    assert refusal(alpha_pattern={"q_proj": "1"}) == "alpha_pattern['q_proj'] must be a finite number."
    assert refusal(alpha_pattern=[1]) == "alpha_pattern must be an object, got [1]."


@pytest.mark.parametrize("value", ["all-linear", r".*\.(q|v)_proj", None])
def test_targets_that_are_no_list_are_not_evaluated(value: Any) -> None:
    assert parse(target_modules=value).target_modules is None


@pytest.mark.parametrize("value", [[], [1], 5, {"q_proj": 1}])
def test_targets_are_names(value: Any) -> None:
    assert refusal(target_modules=value) == f"target_modules must be a list of names or a string, got {value!r}."


@pytest.mark.parametrize(
    "fields", [{"exclude_modules": ["q_proj"]}, {"layers_to_transform": 0}, {"layers_pattern": "layers"}]
)
def test_training_choices_only_narrow_the_targets(fields: dict[str, Any]) -> None:
    assert parse(**fields).narrows_targets
    assert not parse(exclude_modules=None, layers_to_transform=None, layers_pattern=None).narrows_targets


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lora_bias", True, "lora_bias=true is not supported."),
        ("use_dora", True, "DoRA (use_dora=true) is not supported; merge or retrain without it."),
        ("modules_to_save", ["lm_head"], "modules_to_save=['lm_head'] replaces base weights; not supported."),
        ("target_parameters", ["experts.gate_up_proj"], "target_parameters is not supported."),
        ("trainable_token_indices", [1, 2], "trainable_token_indices is not supported."),
        ("trainable_token_indices", {"wte": [1]}, "trainable_token_indices is not supported."),
        ("alora_invocation_tokens", [1], "activated LoRA (alora_invocation_tokens) is not supported."),
        ("layer_replication", [[0, 2]], "layer_replication changes the base model."),
        ("ensure_weight_tying", True, "ensure_weight_tying is not supported."),
        ("kasa_config", {"beta": 1e-4}, "kasa_config is not supported."),
        ("kasa_config", {}, "kasa_config is not supported."),
        ("velora_config", {"scale": 1}, "velora_config is not supported."),
        ("monteclora_config", {"a": 1}, "monteclora_config is not supported."),
        ("use_bdlora", {"nblocks": 1}, "use_bdlora is not supported."),
        ("use_qalora", True, "use_qalora is not supported."),
        ("arrow_config", {"top_k": 1}, "arrow_config is not supported."),
        ("megatron_config", {"a": 1}, "megatron_config is not supported."),
        ("bias", "some", "bias='some' is not supported."),
        ("use_rslora", "yes", "use_rslora must be true or false, got 'yes'."),
        ("fan_in_fan_out", 1, "fan_in_fan_out must be true or false, got 1."),
        ("base_model_name_or_path", 5, "base_model_name_or_path must be a string, got 5."),
        ("new_trick", True, "unknown field 'new_trick' with a non-default value; upgrade loramux or drop it."),
        ("new_trick", 0.5, "unknown field 'new_trick' with a non-default value; upgrade loramux or drop it."),
        ("new_trick", 0, "unknown field 'new_trick' with a non-default value; upgrade loramux or drop it."),
    ],
)
def test_what_changes_the_meaning_is_refused(field: str, value: Any, message: str) -> None:
    assert refusal(**{field: value}) == message


@pytest.mark.parametrize("field", sorted(peft_config._REFUSED_UNLESS_EMPTY))
@pytest.mark.parametrize("value", [None, False, []])
def test_empty_values_switch_nothing_on(field: str, value: Any) -> None:
    assert parse(**{field: value}) == parse()


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_unknown_fields_may_say_nothing(value: Any) -> None:
    assert parse(new_trick=value) == parse()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loftq_config", {"bits": 4}), ("eva_config", {"rho": 2.0}), ("corda_config", {"a": 1}),
        ("lora_ga_config", {"a": 1}),
        ("lora_dropout", 0.1), ("inference_mode", True), ("peft_version", "0.21.2"), ("revision", "main"),
        ("runtime_config", {"a": 1}), ("auto_mapping", {"parent_library": "os"}), ("megatron_core", "megatron.core"),
        ("qalora_group_size", 16),
    ],
)  # fmt: skip
def test_training_fields_are_ignored(field: str, value: Any) -> None:
    assert parse(**{field: value}) == parse()


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal", "eva"])
def test_initial_weights_that_leave_the_base_alone(value: Any) -> None:
    assert parse(init_lora_weights=value) == parse()


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "new"])
def test_initial_weights_that_rewrite_the_base_are_refused(value: str) -> None:
    assert refusal(init_lora_weights=value) == (
        f"init_lora_weights={value!r}: adapter is relative to a modified base; "
        "re-save with path_initial_model_for_weight_conversion."
    )


def test_a_config_that_is_no_sound_json_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^adapter_config.json is not valid: duplicate key 'r'\.$"):
        parse_peft_config(b'{"peft_type": "LORA", "r": 8, "r": 16}')


def test_values_are_cut_short_in_messages() -> None:
    assert len(refusal(modules_to_save=["x" * 10_000])) < 200
