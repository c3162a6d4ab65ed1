"""AdapterLayout: which tensors of the file change which module of the base, checked before they are read.

Every tensor has exactly one meaning for a module of our base model, every pair is whole and has the shape, rank and
scaling that the config states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from loramux.adapters.peft_config import PeftConfig
from loramux.adapters.refusal import Refusal, shown
from loramux.adapters.safetensors_header import TensorEntry
from loramux.adapters.tensor_names import TensorRole, parse_tensor_name
from loramux.adapters.weights import BaseModelSpec, LoRATarget

MAX_SCALING = 1e3
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class PairLayout:
    """The two tensors of one module."""

    module: str
    a: TensorEntry
    b: TensorEntry
    scaling: float


@dataclass(frozen=True, slots=True)
class SavedBaseWeight:
    """A copy of a module's own weight, which PEFT saves when an embedding or lm_head is a target."""

    module: str
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """All that the file holds, in the order of the base model's modules."""

    pairs: tuple[PairLayout, ...]
    saved_base_weights: tuple[SavedBaseWeight, ...]


Parts = dict[str, TensorEntry]  # by "A", "B", "base"


def max_num_tensors(base: BaseModelSpec) -> int:
    """Return how many tensors a header may list; more than pairs alone, so that extras are refused by their names."""
    return 4 * len(base.targets) + 64


def lay_out(
    entries: Iterable[TensorEntry], *, config: PeftConfig, base: BaseModelSpec, max_lora_rank: int
) -> AdapterLayout:
    """Match the tensors of a file with its config and the base model; raises Refusal."""
    if config.fan_in_fan_out and all(target.kind != "conv1d" for target in base.targets.values()):
        raise Refusal(f"fan_in_fan_out=true does not fit base architecture {base.architecture}.")
    parts_of = _parts_by_module(entries, config=config, base=base)
    modules = [module for module in base.targets if "A" in parts_of.get(module, {}) or "B" in parts_of.get(module, {})]
    if not modules:
        raise Refusal("is empty: the weights file has no pair of LoRA tensors.")
    _refuse_torn(modules, parts_of)
    _refuse_other_targets(modules, config, base)
    saved = tuple(_saved_base_weights(parts_of, base))
    ranks = config.rank_pattern.for_modules(modules, default=config.rank)
    alphas = config.alpha_pattern.for_modules(modules, default=config.alpha)
    pairs = []
    for module in modules:
        pair = PairLayout(
            module,
            a=parts_of[module]["A"],
            b=parts_of[module]["B"],
            scaling=config.scaling(alpha=alphas[module], rank=int(ranks[module])),
        )
        _check_pair(pair, base.targets[module], rank=int(ranks[module]), base=base, max_lora_rank=max_lora_rank)
        pairs.append(pair)
    return AdapterLayout(tuple(pairs), saved)


def _parts_by_module(entries: Iterable[TensorEntry], *, config: PeftConfig, base: BaseModelSpec) -> dict[str, Parts]:
    result: dict[str, Parts] = {}
    leftover: list[str] = []
    elsewhere: list[str] = []
    for entry in entries:
        role = parse_tensor_name(entry.name)
        target = base.targets.get(role.module) if role else None
        if role is None or (target is None and role.part == "base"):
            leftover.append(entry.name)
        elif target is None:
            elsewhere.append(role.module)
        elif not _fits(role, target):
            leftover.append(entry.name)
        elif role.part in result.setdefault(role.module, {}):
            raise Refusal(f"module {role.module}: the weights file has two tensors for the same part of it.")
        else:
            result[role.module][role.part] = entry
    _refuse_leftover(leftover, config)
    _refuse_elsewhere(elsewhere, base, has_match=bool(result))
    return result


def _fits(role: TensorRole, target: LoRATarget) -> bool:
    if role.part == "base":
        return target.kind in ("embedding", "lm_head")
    return role.is_embedding == (target.kind == "embedding")


def _refuse_leftover(names: list[str], config: PeftConfig) -> None:
    if not names:
        return
    biases = [name for name in names if name.endswith(".bias")]
    if biases and config.bias != "none":
        raise Refusal(f"bias={config.bias} trains base biases ({len(biases)} tensors); not supported.")
    raise Refusal(f"{len(names)} tensors are not LoRA pairs of this base model: {_first(names)}.")


def _refuse_elsewhere(modules: list[str], base: BaseModelSpec, *, has_match: bool) -> None:
    for module in modules:
        reason = _unservable_reason(module, base.unservable)
        if reason is not None:
            raise Refusal(f"module {module}: {reason}")
    if modules:
        unique = list(dict.fromkeys(modules))
        found = "some" if has_match else "all"
        raise Refusal(
            f"{found} of its modules do not exist in this base model ({base.architecture}): {_first(unique)}.",
            code="adapter_invalid" if has_match else "adapter_base_mismatch",
        )


def _unservable_reason(module: str, unservable: Mapping[str, str]) -> str | None:
    """Look the module up, and then its owners: experts are one parameter of the module that holds them."""
    path = module
    while path:
        if path in unservable:
            return unservable[path]
        path = path.rpartition(".")[0]
    return None


def _refuse_torn(modules: list[str], parts_of: Mapping[str, Parts]) -> None:
    for module in modules:
        for present, missing in (("A", "B"), ("B", "A")):
            if present in parts_of[module] and missing not in parts_of[module]:
                raise Refusal(f"module {module}: the weights file has its lora_{present}, but no lora_{missing}.")


def _refuse_other_targets(modules: list[str], config: PeftConfig, base: BaseModelSpec) -> None:
    """Compare the modules in the file with the config's list, where it is a list."""
    if config.target_modules is None:
        return
    unlisted = [module for module in modules if not _is_listed(module, config.target_modules)]
    if unlisted:
        raise Refusal(f"the weights file has modules that target_modules does not list: {_first(unlisted)}.")
    present = set(modules)
    missing = [module for module in base.targets if module not in present and _is_listed(module, config.target_modules)]
    if missing and not config.narrows_targets:
        raise Refusal(
            f"target_modules lists {len(missing)} modules that the weights file lacks (a partial upload?): "
            f"{_first(missing)}."
        )


def _is_listed(module: str, listed: frozenset[str]) -> bool:
    suffix = module
    while suffix not in listed:
        _, dot, suffix = suffix.partition(".")
        if not dot:
            return False
    return True


def _saved_base_weights(parts_of: Mapping[str, Parts], base: BaseModelSpec) -> Iterator[SavedBaseWeight]:
    for module, parts in parts_of.items():
        if "base" not in parts:
            continue
        entry, target = parts["base"], base.targets[module]
        rows, width = target.out_features, target.in_features
        if target.kind == "embedding":
            rows, width = width, rows
        if len(entry.shape) == 2 and entry.shape[0] > rows and entry.shape[1] == width:
            raise _vocabulary_refusal(entry.shape[0], rows)
        if entry.shape != (rows, width):
            raise Refusal(f"module {module}: its saved base weight differs from this base model.")
        yield SavedBaseWeight(module, entry)


def _check_pair(pair: PairLayout, target: LoRATarget, *, rank: int, base: BaseModelSpec, max_lora_rank: int) -> None:
    if len(pair.a.shape) == len(pair.b.shape) == 2:
        found = pair.a.shape[0]
        if found != rank:
            raise Refusal(f"module {pair.module}: config says r={rank}, tensor has {found}.")
        vocabulary = {"embedding": pair.a.shape[1], "lm_head": pair.b.shape[0]}.get(target.kind, 0)
        if vocabulary > base.vocab_size and base.vocab_size in (target.in_features, target.out_features):
            raise _vocabulary_refusal(vocabulary, base.vocab_size)
    if rank > max_lora_rank:
        raise Refusal(
            f"rank {rank} of module {pair.module} exceeds max_lora_rank {max_lora_rank}.", code="adapter_rank_too_high"
        )
    stem = f"module {pair.module}: lora_{'embedding_' if target.kind == 'embedding' else ''}"
    if pair.a.shape != (rank, target.in_features):
        raise Refusal(f"{stem}A is {_shape(pair.a)}, expected ({rank}, {target.in_features}).")
    if pair.b.shape != (target.out_features, rank):
        raise Refusal(f"{stem}B is {_shape(pair.b)}, expected ({target.out_features}, {rank}).")
    if abs(pair.scaling) > MAX_SCALING:
        raise Refusal(f"module {pair.module}: its scaling {pair.scaling:g} exceeds {MAX_SCALING:g}.")


def _vocabulary_refusal(found: int, expected: int) -> Refusal:
    return Refusal(f"adapter extends the vocabulary ({found} rows, base has {expected}).")


def _shape(entry: TensorEntry) -> str:
    return f"({', '.join(str(size) for size in entry.shape)})"


def _first(names: list[str]) -> str:
    text = ", ".join(shown(name) for name in names[:_NUM_SHOWN])
    return text if len(names) <= _NUM_SHOWN else f"{text}, …"
