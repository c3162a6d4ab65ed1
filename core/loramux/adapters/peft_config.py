"""PeftConfig: what adapter_config.json says; every field of PEFT's LoraConfig is used, ignored or refused.

PEFT validates almost nothing (r=-4 and lora_alpha="x" construct), and several fields change what an adapter means
without a trace in its tensors. So a field is ignored only if it is known to matter at training time alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loramux.adapters.module_patterns import ModulePatterns, PatternRefused
from loramux.adapters.refusal import Refusal, shown
from loramux.adapters.strict_json import JsonValue, parse_json_object

MAX_CONFIG_NBYTES = 256 * 1024
_MAX_DEPTH = 16
_MAX_RANK = 1 << 20
_DEFAULT_RANK = 8
_DEFAULT_ALPHA = 8
_INITIAL_WEIGHTS = ("gaussian", "orthogonal", "eva")  # these leave the base model as it is

_ONLY_FOR_TRAINING = frozenset({
    "auto_mapping", "corda_config", "eva_config", "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
})  # fmt: skip
_REFUSED_UNLESS_EMPTY: Mapping[str, str] = {
    "lora_bias": "lora_bias=true is not supported.",
    "use_dora": "DoRA (use_dora=true) is not supported; merge or retrain without it.",
    "modules_to_save": "modules_to_save={value} replaces base weights; not supported.",
    "target_parameters": "target_parameters is not supported.",
    "trainable_token_indices": "trainable_token_indices is not supported.",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens) is not supported.",
    "layer_replication": "layer_replication changes the base model.",
    "ensure_weight_tying": "ensure_weight_tying is not supported.",
}
_REFUSED_UNLESS_NULL = (  # an empty object stands for defaults here, and switches the feature on
    "arrow_config", "kasa_config", "megatron_config", "monteclora_config", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
_USED = frozenset({
    "alpha_pattern", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules",
    "task_type", "use_rslora",
})  # fmt: skip
_KNOWN = _ONLY_FOR_TRAINING | _REFUSED_UNLESS_EMPTY.keys() | set(_REFUSED_UNLESS_NULL) | _USED

Bias = Literal["none", "all", "lora_only"]


@dataclass(frozen=True, slots=True)
class ModuleValues:
    """rank_pattern or alpha_pattern: the value for the modules that a key matches."""

    field: str
    patterns: ModulePatterns
    values: Mapping[str, float]

    def for_modules(self, modules: list[str], *, default: float) -> dict[str, float]:
        """Return the value of every module; raises Refusal when matching is too much work."""
        try:
            winners = self.patterns.winning_keys(modules)
        except PatternRefused as exc:
            raise _pattern_refusal(self.field, exc) from exc
        return {module: self.values[winners[module]] if module in winners else default for module in modules}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The fields that serving needs.

    `target_modules` is None where the file gives no list (a regular expression, "all-linear"): the tensors tell then.
    `narrows_targets` says that training left out some of the listed modules.
    """

    base_model_name: str | None
    rank: int
    rank_pattern: ModuleValues
    alpha: float
    alpha_pattern: ModuleValues
    use_rslora: bool
    target_modules: frozenset[str] | None
    narrows_targets: bool
    bias: Bias
    fan_in_fan_out: bool

    @property
    def max_rank(self) -> int:
        """Return the highest rank that any module may have."""
        return int(max([self.rank, *self.rank_pattern.values.values()]))

    def scaling(self, *, alpha: float, rank: int) -> float:
        """Return PEFT's factor of a module's delta."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def parse_peft_config(content: bytes) -> PeftConfig:
    """Parse the bytes of adapter_config.json; raises Refusal for all that cannot be served exactly."""
    try:
        fields = parse_json_object(content, max_depth=_MAX_DEPTH)
    except ValueError as exc:
        raise Refusal(f"adapter_config.json is not valid: {exc}.") from exc
    _refuse_unservable(fields)
    target_modules = fields.get("target_modules")
    return PeftConfig(
        base_model_name=_base_model_name(fields.get("base_model_name_or_path")),
        rank=_rank("r", fields.get("r", _DEFAULT_RANK)),
        rank_pattern=_module_values("rank_pattern", fields.get("rank_pattern")),
        alpha=_alpha("lora_alpha", fields.get("lora_alpha", _DEFAULT_ALPHA)),
        alpha_pattern=_module_values("alpha_pattern", fields.get("alpha_pattern")),
        use_rslora=_flag("use_rslora", fields.get("use_rslora")),
        target_modules=_target_modules(target_modules),
        narrows_targets=any(
            _is_set(fields.get(f)) for f in ("exclude_modules", "layers_to_transform", "layers_pattern")
        ),
        bias=_bias(fields.get("bias")),
        fan_in_fan_out=_flag("fan_in_fan_out", fields.get("fan_in_fan_out")),
    )


def _refuse_unservable(fields: dict[str, JsonValue]) -> None:
    peft_type = fields.get("peft_type")
    if peft_type != "LORA":
        raise Refusal(f"peft_type={shown(peft_type)} is not supported; only LORA adapters can be served.")
    task_type = fields.get("task_type")
    if task_type not in ("CAUSAL_LM", None):
        raise Refusal(f"task_type={_plain(task_type)} cannot be served by a causal LM.")
    for field, message in _REFUSED_UNLESS_EMPTY.items():
        if _is_set(fields.get(field)):
            raise Refusal(message.format(value=shown(fields[field])))
    for field in _REFUSED_UNLESS_NULL:
        if fields.get(field) is not None and fields[field] is not False:
            raise Refusal(f"{field} is not supported.")
    initial_weights = fields.get("init_lora_weights")
    if not (initial_weights is None or isinstance(initial_weights, bool) or initial_weights in _INITIAL_WEIGHTS):
        raise Refusal(
            f"init_lora_weights={shown(initial_weights)}: adapter is relative to a modified base; "
            "re-save with path_initial_model_for_weight_conversion."
        )
    for field, value in fields.items():
        if field not in _KNOWN and _is_set(value):
            raise Refusal(f"unknown field {shown(field)} with a non-default value; upgrade loramux or drop it.")


def _is_set(value: JsonValue) -> bool:
    return not (value is None or value is False or value == [] or value == {})


def _plain(value: JsonValue) -> str:
    return value if isinstance(value, str) and value.isidentifier() and len(value) < 64 else shown(value)


def _flag(field: str, value: JsonValue) -> bool:
    if not isinstance(value, bool | None):
        raise Refusal(f"{field} must be true or false, got {shown(value)}.")
    return value is True


def _rank(field: str, value: JsonValue) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        raise Refusal(f"{field} must be a whole number of at least 1, got {shown(value)}.")
    return value


def _alpha(field: str, value: JsonValue) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not isinstance(value, int | float) or not 0 < abs(value) < 1e18:  # False for NaN and infinity
        raise Refusal(f"{field} must be a finite number.")
    return float(value)


def _bias(value: JsonValue) -> Bias:
    match value:
        case None | "none":
            return "none"
        case "all" | "lora_only":
            return value
        case _:
            raise Refusal(f"bias={shown(value)} is not supported.")


def _base_model_name(value: JsonValue) -> str | None:
    if not isinstance(value, str | None):
        raise Refusal(f"base_model_name_or_path must be a string, got {shown(value)}.")
    return value or None


def _target_modules(value: JsonValue) -> frozenset[str] | None:
    if value is None or isinstance(value, str):
        return None
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(names) != len(value) or not names:
        raise Refusal(f"target_modules must be a list of names or a string, got {shown(value)}.")
    return frozenset(names)


def _module_values(field: str, value: JsonValue) -> ModuleValues:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Refusal(f"{field} must be an object, got {shown(value)}.")
    try:
        patterns = ModulePatterns.compile(value)
    except PatternRefused as exc:
        raise _pattern_refusal(field, exc) from exc
    check = _rank if field == "rank_pattern" else _alpha
    return ModuleValues(field, patterns, {key: check(f"{field}[{shown(key)}]", item) for key, item in value.items()})


def _pattern_refusal(field: str, refused: PatternRefused) -> Refusal:
    return Refusal(f"{field} key {shown(refused.key)} is not a valid or affordable pattern.")
