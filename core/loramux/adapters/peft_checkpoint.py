"""read_adapter: a PEFT adapter folder becomes AdapterWeights, or is refused with the reason; PEFT itself is not used.

Cheapest checks first, each bounded: sizes, config, header, header against config and base, then the tensors. Every byte
is read once; the digest and the tensors come from the same buffer, so what is served is what was checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from loramux.adapters.adapter_files import AdapterFile, AdapterFiles, open_adapter_files
from loramux.adapters.adapter_layout import SavedBaseWeight, lay_out, max_num_tensors
from loramux.adapters.base_match import BaseMatch, refuse_other_base
from loramux.adapters.digest import digest_of_bytes
from loramux.adapters.known_headers import CheckedHeader, KnownHeaders
from loramux.adapters.peft_config import MAX_CONFIG_NBYTES, PeftConfig, parse_peft_config
from loramux.adapters.refusal import Refusal
from loramux.adapters.safetensors_header import (
    LENGTH_NBYTES,
    MAX_HEADER_NBYTES,
    header_nbytes,
    parse_header,
)
from loramux.adapters.tensor_values import refuse_changed_base, refuse_non_finite, tensor_at, tensors_of
from loramux.adapters.weights import AdapterWeights, BaseModelSpec, ModuleWeights
from loramux.errors import AdapterInvalid

BaseWeight = Callable[[str], torch.Tensor]
_SLACK = 1.1

CHECKS = ("files", "config", "base name", "size", "header", "layout", "values", "base weights", "unchanged")
"""What is checked, in this order; `passed` hears of each as it is done."""


@dataclass(frozen=True, slots=True)
class _Checks:
    """What one adapter is checked against."""

    base: BaseModelSpec
    max_lora_rank: int
    base_match: BaseMatch
    serving_dtype: torch.dtype
    base_weight: BaseWeight | None
    compares_base_weights: bool
    max_adapter_bytes: int
    passed: Callable[[str], None]
    known_headers: KnownHeaders


def read_adapter(
    name: str,
    folder: Path,
    *,
    base: BaseModelSpec,
    max_lora_rank: int,
    base_match: BaseMatch = "basename",
    serving_dtype: torch.dtype = torch.float32,
    base_weight: BaseWeight | None = None,
    compares_base_weights: bool = True,
    max_adapter_bytes: int = 2 * 1024**3,
    allowed_root: Path | None = None,
    passed: Callable[[str], None] = lambda _check: None,
    known_headers: KnownHeaders | None = None,
) -> AdapterWeights:
    """Read and check the adapter in a local folder; raises AdapterInvalid. Blocks: call it off the event loop.

    With `allowed_root` the folder must lie below it, and no symlink below it is followed.
    `base_weight(module)` returns the base's own weight of an embedding or lm_head; without it, an adapter that brings
    a copy of such a weight is refused, because the copy cannot be compared. Only whoever does not serve the adapter may
    set `compares_base_weights` to False. `passed` is called with each of CHECKS that holds. `known_headers`:
    those of adapters read before for the same base and rank, which are not checked again, nor told to `passed`.
    """
    checks = _Checks(
        base,
        max_lora_rank,
        base_match,
        serving_dtype,
        base_weight,
        compares_base_weights,
        max_adapter_bytes,
        passed,
        KnownHeaders() if known_headers is None else known_headers,
    )
    open_files = partial(open_adapter_files, folder, allowed_root)
    try:
        weights = _read_unchanged(name, open_files, checks) or _read_unchanged(name, open_files, checks)
    except Refusal as refusal:
        raise AdapterInvalid(name, refusal.reason, code=refusal.code, may_heal=refusal.may_heal) from refusal
    except OSError as exc:
        raise AdapterInvalid(name, f"its files cannot be read: {exc.strerror}.", may_heal=True) from exc
    if weights is None:
        reason = "its files change while they are read; try again when the copy is complete."
        raise AdapterInvalid(name, reason, may_heal=True)
    return weights


def _read_unchanged(
    name: str, open_files: Callable[[], AbstractContextManager[AdapterFiles]], checks: _Checks
) -> AdapterWeights | None:
    """Return the adapter, or None when its files changed meanwhile: then nothing read, nor refused, can be trusted."""
    with open_files() as files:
        try:
            weights = _read(name, files, checks)
        except Refusal:
            if files.has_changed():
                return None
            raise
        if files.has_changed():
            return None
        checks.passed("unchanged")
        return weights


def _read(name: str, files: AdapterFiles, checks: _Checks) -> AdapterWeights:
    checks.passed("files")
    if files.config.nbytes > MAX_CONFIG_NBYTES:
        raise Refusal(f"{files.config.name} has {files.config.nbytes} bytes; the limit is {MAX_CONFIG_NBYTES}.")
    config_bytes = bytes(_read_exactly(files.config, files.config.nbytes))
    config = parse_peft_config(config_bytes)
    checks.passed("config")
    refuse_other_base(name, config.base_model_name, base_names=checks.base.names, base_match=checks.base_match)
    checks.passed("base name")
    _refuse_oversize(files.weights, config, checks)
    checks.passed("size")

    files.weights.fetch_ahead()
    prefix = bytes(files.weights.read(LENGTH_NBYTES))
    header = bytes(_read_exactly(files.weights, header_nbytes(prefix, file_nbytes=files.weights.nbytes)))
    data_nbytes = files.weights.nbytes - len(prefix) - len(header)
    content = config_bytes, header, data_nbytes
    checked = checks.known_headers.get(content, lambda: _check_header(header, data_nbytes, config, checks))

    data = _read_exactly(files.weights, data_nbytes)
    refuse_non_finite(data, checked.entries, checks.serving_dtype)
    checks.passed("values")
    if checks.compares_base_weights:
        for saved in checked.layout.saved_base_weights:
            _refuse_changed_base(saved, data, checks.base_weight)
        checks.passed("base weights")
    modules = _modules(checked, data)
    nbytes = sum(module.a.nbytes + module.b.nbytes for module in modules.values())
    return AdapterWeights(name, digest_of_bytes(config_bytes, (prefix, header, data)), modules, nbytes)


def _check_header(header: bytes, data_nbytes: int, config: PeftConfig, checks: _Checks) -> CheckedHeader:
    entries = parse_header(header, data_nbytes=data_nbytes, max_tensors=max_num_tensors(checks.base))
    checks.passed("header")
    layout = lay_out(entries, config=config, base=checks.base, max_lora_rank=checks.max_lora_rank)
    checks.passed("layout")
    return CheckedHeader(entries, layout)


def _refuse_oversize(weights: AdapterFile, config: PeftConfig, checks: _Checks) -> None:
    if weights.nbytes > checks.max_adapter_bytes:
        raise Refusal(f"{weights.name} has {weights.nbytes} bytes; the limit is {checks.max_adapter_bytes}.")
    if weights.is_sparse():
        raise Refusal(f"{weights.name} is sparse: the disk holds less than its {weights.nbytes} bytes.")
    budget = _max_weights_nbytes(config, checks.base)
    if weights.nbytes > budget:
        raise Refusal(
            f"{weights.name} has {weights.nbytes} bytes; rank {config.max_rank} on every module of this base model "
            f"needs at most {budget}."
        )


def _max_weights_nbytes(config: PeftConfig, base: BaseModelSpec) -> int:
    """Return what the config's rank can take on all modules in float32, with copies of embedding and lm_head."""
    num_values = 0
    for target in base.targets.values():
        num_values += config.max_rank * (target.in_features + target.out_features)
        if target.kind in ("embedding", "lm_head"):
            num_values += target.in_features * target.out_features
    return int(_SLACK * num_values * torch.float32.itemsize) + MAX_HEADER_NBYTES


def _read_exactly(file: AdapterFile, nbytes: int) -> memoryview:
    content = file.read(nbytes)
    if len(content) != nbytes:
        raise Refusal(f"{file.name} is truncated.")
    return content


def _refuse_changed_base(saved: SavedBaseWeight, data: memoryview, base_weight: BaseWeight | None) -> None:
    if base_weight is None:
        raise Refusal(f"module {saved.module}: its saved base weight cannot be compared with this base model.")
    refuse_changed_base(saved.module, tensor_at(data, saved.entry), base_weight(saved.module))


def _modules(checked: CheckedHeader, data: memoryview) -> dict[str, ModuleWeights]:
    names = (entry.name for entry in checked.entries)
    tensors = dict(zip(names, tensors_of(data, checked.entries), strict=True))
    # A view keeps the whole buffer: with copies of base weights in it, that can be a hundred times the adapter.
    must_copy = bool(checked.layout.saved_base_weights)
    modules = {}
    for pair in checked.layout.pairs:
        a, b = tensors[pair.a.name], tensors[pair.b.name]
        modules[pair.module] = ModuleWeights(a.clone() if must_copy else a, b.clone() if must_copy else b, pair.scaling)
    return modules
