"""PackedAdapter: one adapter as one contiguous slab, in the dtype and layout that a slot holds.

Every tensor begins at a multiple of 256 bytes of its slab, and so at such an address on a GPU, whose allocations do:
kernels may load vectors wherever an adapter lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import torch

from loramux.adapters.weights import AdapterWeights

ALIGNMENT: Final = 256  # bytes


@dataclass(frozen=True, slots=True)
class PackedModule:
    """Views into the slab: a [rank, in_features] and b [out_features, rank], with the scaling folded into b.

    In memory b is [rank, out_features]: loops and kernels run along the outputs, whatever the rank.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """One adapter ready to be placed. `digest` is its identity; `slab` [numel] owns the memory of all modules."""

    name: str
    digest: str
    slab: torch.Tensor
    modules: Mapping[str, PackedModule]
    max_rank: int

    @property
    def nbytes(self) -> int:
        return self.slab.nbytes

    def placed_in(self, memory: torch.Tensor) -> PackedAdapter:
        """Return this adapter as it lies in `memory` [at least numel], which a copy of its slab begins."""
        slab = memory[: self.slab.numel()]
        modules = {path: PackedModule(_view(slab, m.a), _view(slab, m.b)) for path, m in self.modules.items()}
        return replace(self, slab=slab, modules=modules)


def pack(weights: AdapterWeights, dtype: torch.dtype, device: torch.device) -> PackedAdapter:
    """Cast an adapter to the serving dtype, in host memory; in pinned memory where it will serve on a GPU.

    The scaling is multiplied in float32 before the cast. Where the dtype is float32 on a CPU, an adapter of 16-bit
    numbers stays one, if the scaling keeps them exact: half of the memory, and half of the reads in every step.
    """
    dtype = _narrowest(weights, dtype, device)
    unit = ALIGNMENT // dtype.itemsize
    sizes = [tensor.numel() for module in weights.modules.values() for tensor in (module.a, module.b)]
    starts = list(accumulate((-(-size // unit) * unit for size in sizes), initial=0))
    slab = torch.zeros(starts[-1], dtype=dtype, pin_memory=device.type == "cuda")
    pieces = (slab[start : start + size] for start, size in zip(starts, sizes, strict=False))
    modules: dict[str, PackedModule] = {}
    for path, module in weights.modules.items():
        a, b = next(pieces).view(module.a.shape), next(pieces).view(module.b.t().shape).t()
        a.copy_(module.a)
        b.copy_(module.b.to(torch.float32) * module.scaling)
        modules[path] = PackedModule(a, b)
    return PackedAdapter(weights.name, weights.digest, slab, modules, weights.max_rank)


def _narrowest(weights: AdapterWeights, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The adapter's own 16-bit dtype where it holds everything exactly and can be served; else `dtype`."""
    modules = weights.modules.values()
    dtypes = {tensor.dtype for module in modules for tensor in (module.a, module.b)}
    if dtype is not torch.float32 or device.type != "cpu" or len(dtypes) != 1:
        return dtype
    (own,) = dtypes
    if own not in (torch.float16, torch.bfloat16):
        return dtype
    scaled = (module.b.float() * module.scaling for module in modules if module.scaling != 1)
    return own if all(torch.equal(b, b.to(own).float()) for b in scaled) else dtype


def _view(slab: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a copied slab that `like` is of the original."""
    return slab.as_strided(like.shape, like.stride(), slab.storage_offset() + like.storage_offset())
