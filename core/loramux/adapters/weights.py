"""AdapterWeights: one validated adapter in host memory, and what of the base model it is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

TargetKind = Literal["linear", "conv1d", "embedding", "lm_head"]


@dataclass(frozen=True, slots=True)
class LoRATarget:
    """A module of the base model that LoRA may change.

    `in_features` is the vocabulary size for an embedding; `out_features` its width.
    """

    kind: TargetKind
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """What an adapter must fit: the modules of the base model by full path, as `model.named_modules()` names them.

    `names` are all names that this base goes by: see model/base_names.py.
    `unservable` maps a module path (or the path of a parameter's owner) to the reason why LoRA cannot change it.
    `base_weight(path)` is not here: checks that need base values receive them separately.
    """

    names: tuple[str, ...]
    architecture: str
    targets: Mapping[str, LoRATarget]
    unservable: Mapping[str, str]
    vocab_size: int


@dataclass(frozen=True, slots=True)
class ModuleWeights:
    """The low-rank pair of one module; the delta of a row x is `scaling * (x @ a.T) @ b.T`.

    a: [rank, in_features], b: [out_features, rank], contiguous, float32/float16/bfloat16 as stored in the file.
    For an embedding, a is [rank, vocab]: the row of token t is `a[:, t]`.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One checked adapter. `digest` is the sha256 (hex) over config and weights files: the adapter's identity."""

    name: str
    digest: str
    modules: Mapping[str, ModuleWeights]
    nbytes: int

    @property
    def max_rank(self) -> int:
        return max(module.rank for module in self.modules.values())
