"""PackedAdapter: one adapter as one contiguous slab, in the dtype and layout that a slot holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from loramux.adapters.weights import AdapterWeights


@dataclass(frozen=True, slots=True)
class PackedModule:
    """Views into the slab: a [rank, in_features] and b [out_features, rank], with the scaling folded into b.

    In memory b is [rank, out_features] where the adapter serves on a CPU, whose loops run along the outputs.
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

    def to(self, device: torch.device) -> PackedAdapter:
        """Return this adapter with its slab on `device`: one copy, or none when it is there already."""
        slab = self.slab.to(device, non_blocking=True)
        if slab is self.slab:
            return self
        modules = {path: PackedModule(_view(slab, m.a), _view(slab, m.b)) for path, m in self.modules.items()}
        return replace(self, slab=slab, modules=modules)


def pack(weights: AdapterWeights, dtype: torch.dtype, device: torch.device) -> PackedAdapter:
    """Cast an adapter to the serving dtype, in the layout of the device it will serve on, but in host memory.

    The scaling is multiplied in float32 before the cast.
    """
    is_cpu = device.type == "cpu"
    tensors: list[torch.Tensor] = []
    for module in weights.modules.values():
        b = (module.b.to(torch.float32) * module.scaling).to(dtype)
        tensors += [module.a.to(dtype).flatten(), (b.t() if is_cpu else b).flatten()]
    slab = torch.cat(tensors)
    pieces = iter(torch.split(slab, [tensor.numel() for tensor in tensors]))
    modules: dict[str, PackedModule] = {}
    for path, module in weights.modules.items():
        a, b = next(pieces), next(pieces)
        b = b.view(module.b.t().shape).t() if is_cpu else b.view(module.b.shape)
        modules[path] = PackedModule(a.view(module.a.shape), b)
    return PackedAdapter(weights.name, weights.digest, slab, modules, weights.max_rank)


def _view(slab: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a copied slab that `like` is of the original."""
    return slab.as_strided(like.shape, like.stride(), like.storage_offset())
