"""PackedAdapter: one adapter as one contiguous slab, in the dtype and layout that a slot holds.

Every tensor begins at a multiple of 256 bytes of its slab, and so at such an address on a GPU, whose allocations do:
kernels may load vectors wherever an adapter lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from loramux.adapters.weights import AdapterWeights, ModuleWeights

ALIGNMENT: Final = 256  # bytes

MOST_NUMBERS: Final = 1 << 20  # of a group: what is made of it on the way takes some times as much memory

Group = list[tuple[str, ModuleWeights]]


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
        if memory is self.slab:
            return self
        slab = memory[: self.slab.numel()]
        modules = {path: PackedModule(_view(slab, m.a), _view(slab, m.b)) for path, m in self.modules.items()}
        return replace(self, slab=slab, modules=modules)


def pack(weights: AdapterWeights, dtype: torch.dtype, device: torch.device) -> PackedAdapter:
    """Cast an adapter to the serving dtype, in host memory; in pinned memory where it will serve on a GPU.

    The scaling is multiplied in float32 before the cast. Where the dtype is float32 on a CPU, an adapter of 16-bit
    numbers stays one, if the scaling keeps them exact: half of the memory, and half of the reads in every step.
    """
    groups = _groups(weights)
    dtype = _narrowest(groups, dtype, device)
    unit = ALIGNMENT // dtype.itemsize
    places: list[tuple[int, tuple[int, int, int], int]] = []  # start, shape, and numbers from one module to the next
    numel = 0
    for group in groups:
        first = group[0][1]
        for rows, columns in (first.a.shape, first.b.t().shape):
            step = -(-rows * columns // unit) * unit
            places.append((numel, (len(group), rows, columns), step))
            numel += len(group) * step
    slab = torch.zeros(numel, dtype=dtype, pin_memory=device.type == "cuda")
    parts = (slab.as_strided(shape, (step, shape[2], 1), start) for start, shape, step in places)
    modules: dict[str, PackedModule] = {}
    for group in groups:
        a, b = next(parts), next(parts).transpose(1, 2)
        a.copy_(torch.stack([module.a for _path, module in group]))
        b.copy_(_scaled_b(group))
        pairs = zip(group, a.unbind(), b.unbind(), strict=True)
        modules |= {path: PackedModule(one_a, one_b) for (path, _module), one_a, one_b in pairs}
    in_order = {path: modules[path] for path in weights.modules}
    return PackedAdapter(weights.name, weights.digest, slab, in_order, weights.max_rank)


def _groups(weights: AdapterWeights) -> list[Group]:
    """Modules whose pairs have the same shapes and dtypes: what is done to one is done to all in one call."""
    groups: list[Group] = []
    latest: dict[object, Group] = {}
    for path, module in weights.modules.items():
        kind = module.a.shape, module.b.shape, module.a.dtype, module.b.dtype
        group = latest.get(kind)
        if group is None or (len(group) + 1) * (module.a.numel() + module.b.numel()) > MOST_NUMBERS:
            group = latest[kind] = []
            groups.append(group)
        group.append((path, module))
    return groups


def _scaled_b(group: Group) -> torch.Tensor:
    """Every B of a group by its scaling: [n, out_features, rank], in float32 unless no scaling changes anything."""
    stacked = torch.stack([module.b for _path, module in group])
    scalings = [module.scaling for _path, module in group]
    if all(scaling == 1 for scaling in scalings):
        return stacked
    return stacked.float().mul_(torch.tensor(scalings, dtype=torch.float32)[:, None, None])


def _narrowest(groups: Sequence[Group], dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The adapter's own 16-bit dtype where it holds everything exactly and can be served; else `dtype`."""
    dtypes = {tensor.dtype for group in groups for tensor in (group[0][1].a, group[0][1].b)}
    if dtype is not torch.float32 or device.type != "cpu" or len(dtypes) != 1:
        return dtype
    (own,) = dtypes
    if own not in (torch.float16, torch.bfloat16):
        return dtype
    scaled = (_scaled_b(group) for group in groups if any(module.scaling != 1 for _path, module in group))
    return own if all(torch.equal(b, b.to(own).float()) for b in scaled) else dtype


def _view(slab: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a copied slab that `like` is of the original."""
    return slab.as_strided(like.shape, like.stride(), slab.storage_offset() + like.storage_offset())
