"""PackedAdapter: one adapter as one contiguous slab, in the dtype and layout that a slot holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from loramux.adapters.weights import AdapterWeights


@dataclass(frozen=True, slots=True)
class PackedModule:
    """Views into the slab: a [rank, in_features] and b [out_features, rank], with the scaling folded into b."""

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

    def to(self, device: torch.device) -> PackedAdapter:
        """Return this adapter with its slab on `device`: one copy, or none when it is there already."""
        slab = self.slab.to(device, non_blocking=True)
        if slab is self.slab:
            return self
        return _with_views(self, slab)


def pack(weights: AdapterWeights, dtype: torch.dtype) -> PackedAdapter:
    """Cast an adapter to the serving dtype; the scaling is multiplied in float32 before the cast."""
    tensors: list[torch.Tensor] = []
    for module in weights.modules.values():
        tensors.append(module.a.to(dtype).flatten())
        tensors.append((module.b.to(torch.float32) * module.scaling).to(dtype).flatten())
    slab = torch.cat(tensors)
    shapes = {path: (module.a.shape, module.b.shape) for path, module in weights.modules.items()}
    return PackedAdapter(weights.name, weights.digest, slab, _views(slab, shapes), weights.max_rank)


def _with_views(adapter: PackedAdapter, slab: torch.Tensor) -> PackedAdapter:
    shapes = {path: (module.a.shape, module.b.shape) for path, module in adapter.modules.items()}
    return PackedAdapter(adapter.name, adapter.digest, slab, _views(slab, shapes), adapter.max_rank)


def _views(slab: torch.Tensor, shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> dict[str, PackedModule]:
    modules: dict[str, PackedModule] = {}
    offset = 0
    for path, (a_shape, b_shape) in shapes.items():
        b_offset = offset + a_shape.numel()
        end = b_offset + b_shape.numel()
        modules[path] = PackedModule(slab[offset:b_offset].view(a_shape), slab[b_offset:end].view(b_shape))
        offset = end
    return modules
