"""Inspection: what is in an adapter folder, and how it fares in every check, without serving it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from loramux.adapters.adapter_files import open_adapter_files
from loramux.adapters.base_match import BaseMatch
from loramux.adapters.peft_checkpoint import CHECKS, read_adapter
from loramux.adapters.peft_config import MAX_CONFIG_NBYTES, parse_peft_config
from loramux.adapters.refusal import Refusal
from loramux.adapters.safetensors_header import LENGTH_NBYTES, TensorEntry, header_nbytes, parse_header
from loramux.adapters.tensor_names import parse_tensor_name
from loramux.adapters.weights import BaseModelSpec, LoRATarget, TargetKind
from loramux.errors import AdapterInvalid

NEEDS_BASE = ("base name", "base weights")
"""Checks that say nothing without a base model."""

_MAX_TENSORS = 1_000_000
_ANY_SIZE = 1 << 24
CheckVerdict = Literal["ok", "refused", "not checked"]


@dataclass(frozen=True, slots=True)
class Base:
    """A base model to inspect against: what adapters must fit, and its own weights by module."""

    spec: BaseModelSpec
    weight: Callable[[str], torch.Tensor]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check came out; `reason` says why it was refused, or why it was not made."""

    check: str
    verdict: CheckVerdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InspectedModule:
    """One module that the adapter changes."""

    module: str
    rank: int
    scaling: float
    in_features: int
    out_features: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that is known of an adapter; without a digest it was refused before all of it was read."""

    folder: str
    checks: tuple[CheckResult, ...]
    digest: str | None = None
    nbytes: int = 0
    modules: tuple[InspectedModule, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether nothing was refused."""
        return all(result.verdict != "refused" for result in self.checks)


def inspect_adapter(
    folder: Path,
    *,
    name: str | None = None,
    base: Base | None = None,
    base_match: BaseMatch = "basename",
    max_lora_rank: int = 512,
    allowed_root: Path | None = None,
) -> Inspection:
    """Make every check that serving makes; without a base, those that need none. Blocks; refusals are results."""
    passed: list[str] = []
    folder = folder.expanduser()
    try:
        weights = read_adapter(
            name or folder.name,
            folder,
            base=_spec_of_file(folder, allowed_root) if base is None else base.spec,
            max_lora_rank=max_lora_rank,
            base_match="off" if base is None else base_match,
            serving_dtype=torch.float32 if base is None else base.dtype,
            base_weight=None if base is None else base.weight,
            compares_base_weights=base is not None,
            allowed_root=allowed_root,
            passed=passed.append,
        )
    except AdapterInvalid as exc:
        return Inspection(str(folder), tuple(_results(passed, exc.reason, has_base=base is not None)))
    return Inspection(
        str(folder),
        tuple(_results(passed, None, has_base=base is not None)),
        digest=weights.digest,
        nbytes=weights.nbytes,
        modules=tuple(
            InspectedModule(
                module=path,
                rank=pair.rank,
                scaling=pair.scaling,
                in_features=int(pair.a.shape[1]),
                out_features=int(pair.b.shape[0]),
                dtype=str(pair.a.dtype).removeprefix("torch."),
            )
            for path, pair in weights.modules.items()
        ),
    )


def _results(passed: list[str], reason: str | None, *, has_base: bool) -> Iterable[CheckResult]:
    is_refused = False
    for check in CHECKS:
        if not has_base and check in NEEDS_BASE:
            yield CheckResult(check, "not checked", "needs a base model")
        elif check in passed:
            yield CheckResult(check, "ok")
        elif reason is not None and not is_refused:
            is_refused = True
            yield CheckResult(check, "refused", reason)
        else:
            yield CheckResult(check, "not checked", "refused before")


def _spec_of_file(folder: Path, allowed_root: Path | None) -> BaseModelSpec:
    """Take the adapter's own modules for the base's; what is unsound about the file, the checks will say themselves."""
    targets = {"": LoRATarget("linear", _ANY_SIZE, _ANY_SIZE)}  # so that size is not what an unsound file fails at
    try:
        with open_adapter_files(folder, allowed_root) as files:
            config = parse_peft_config(bytes(files.config.read(MAX_CONFIG_NBYTES)))
            prefix = bytes(files.weights.read(LENGTH_NBYTES))
            header = bytes(files.weights.read(header_nbytes(prefix, file_nbytes=files.weights.nbytes)))
        data_nbytes = files.weights.nbytes - len(prefix) - len(header)
        entries = parse_header(header, data_nbytes=data_nbytes, max_tensors=_MAX_TENSORS)
        targets = _targets_of(entries, linear_kind="conv1d" if config.fan_in_fan_out else "linear") or targets
    except (Refusal, OSError):
        pass
    return BaseModelSpec(names=(), architecture="unknown", targets=targets, unservable={}, vocab_size=0)


def _targets_of(entries: Iterable[TensorEntry], *, linear_kind: Literal["linear", "conv1d"]) -> dict[str, LoRATarget]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings, copied = set(), set()
    for entry in entries:
        role = parse_tensor_name(entry.name)
        if role is None or len(entry.shape) != 2:
            continue
        shapes.setdefault(role.module, {})[role.part] = entry.shape
        if role.is_embedding:
            embeddings.add(role.module)
        if role.part == "base":
            copied.add(role.module)
    targets = {}
    for module, parts in shapes.items():
        in_features = parts["A"][1] if "A" in parts else 0
        out_features = parts["B"][0] if "B" in parts else 0
        kind: TargetKind = linear_kind
        if module in embeddings:
            kind = "embedding"
        elif module in copied:
            kind = "lm_head"
        if in_features and out_features:
            targets[module] = LoRATarget(kind, in_features, out_features)
    return targets
