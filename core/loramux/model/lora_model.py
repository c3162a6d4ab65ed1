"""LoRAModel: where in the base model LoRA can act, and the adapter slots' weights at each of these places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramux.adapters.packed import PackedAdapter
from loramux.adapters.weights import BaseModelSpec, LoRATarget
from loramux.model.adapter_memory import AdapterMemory
from loramux.model.ends import lm_head, token_embedding, vocab_size
from loramux.model.fused.linear import FusedLinear
from loramux.model.lora_linear import attach_lora
from loramux_kernels import SlotTable, SlotWeights
from loramux_kernels.backend import use_triton

IntArray = npt.NDArray[np.int64]


def describe_base(model: PreTrainedModel, *, names: tuple[str, ...], flat_modules: frozenset[str]) -> BaseModelSpec:
    """Say what an adapter must fit.

    flat_modules: the paths of modules that the probe saw work on the batch's rows in their order; any other linear
    layer (an expert, a router) would mix up the rows' adapters, and is refused as a target by name.
    """
    embedding, head = token_embedding(model), lm_head(model)
    targets: dict[str, LoRATarget] = {}
    unservable: dict[str, str] = {}
    for path, module in model.named_modules():
        target = _target(module, is_embedding=module is embedding, is_lm_head=module is head)
        if target is not None and path in flat_modules:
            targets[path] = target
        elif target is not None or any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False)):
            unservable[path] = f"LoRA on a {type(module).__name__} cannot be served"
    return BaseModelSpec(
        names=names,
        architecture=type(model).__name__,
        targets=targets,
        unservable=unservable,
        vocab_size=vocab_size(model),
    )


def _target(module: nn.Module, *, is_embedding: bool, is_lm_head: bool) -> LoRATarget | None:
    if is_embedding and isinstance(module, nn.Embedding):
        return LoRATarget("embedding", module.num_embeddings, module.embedding_dim)
    if is_lm_head and isinstance(module, nn.Linear):
        return LoRATarget("lm_head", module.in_features, module.out_features)
    if isinstance(module, nn.Linear):
        return LoRATarget("linear", module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        return LoRATarget("conv1d", int(module.weight.shape[0]), int(module.weight.shape[1]))
    return None


class LoRAModel:
    """The adapter slots of one model. Owned by the engine thread. `table` says where the kernels find their weights.

    `memory` is where adapters lie on a GPU; on a CPU slots read them where their loader has put them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        targets: Mapping[str, LoRATarget],
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        linears: Mapping[nn.Module, FusedLinear],
        memory: AdapterMemory | None = None,
    ) -> None:
        self._memory = memory
        self._modules: dict[str, SlotWeights] = {}
        self._placed: dict[int, PackedAdapter] = {}  # which keeps the memory that a CPU reads
        self.num_placements = 0
        self._index = {path: index for index, path in enumerate(targets)}
        self.table = SlotTable(len(targets), num_slots, model.device)
        # Triton's kernels need the table alone; to tell hundreds of modules of their pairs takes as long as a step
        self._reads_table = use_triton(self.table.tensor)
        for path, target in targets.items():
            weights = SlotWeights(
                num_slots,
                target.in_features,
                target.out_features,
                dtype,
                model.device,
                max_rank=max_rank,
                table=self.table,
                module=self._index[path],
            )
            module = model.get_submodule(path)
            if product := linears.get(module):
                product.attach(module, weights)
            else:
                attach_lora(module, target, weights)
            self._modules[path] = weights

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into a slot, in the place of what was there; steps launched before still see the old one.

        One copy of its slab to the device at most, and one of the table that says where it is.
        """
        self._take_out(slot)
        slab = adapter.slab if self._memory is None else self._memory.take(slot, adapter)
        if self._reads_table:
            self.table.set_slot(slot, *self._pairs(adapter, slab))
        else:
            for path, module in adapter.placed_in(slab).modules.items():
                self._modules[path].set(slot, module.a, module.b)
        self.table.flip()
        self._placed[slot] = adapter
        self.num_placements += 1

    def clear(self, slot: int) -> None:
        """Empty a slot, and let go of the memory it held."""
        self._take_out(slot)
        self.table.flip()

    def prefetch(self, adapters: Sequence[PackedAdapter]) -> None:
        """Bring adapters that are waited for, the next one first, closer to their slots, as far as there is room."""
        if self._memory is not None:
            self._memory.prefetch(adapters)

    def is_ready(self, digest: str) -> bool:
        """Whether an adapter that is in no slot can be placed without a step waiting for it."""
        return self._memory is None or self._memory.is_ready(digest)

    def _take_out(self, slot: int) -> None:
        adapter = self._placed.pop(slot, None)
        if adapter is None:
            return
        if self._reads_table:
            self.table.set_slot(slot, np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.int64))
        else:
            for path in adapter.modules:
                self._modules[path].clear(slot)
        if self._memory is not None:
            self._memory.release(slot)

    def _pairs(self, adapter: PackedAdapter, slab: torch.Tensor) -> tuple[IntArray, IntArray]:
        """The modules that an adapter changes, and where their pairs are while it lies in `slab`."""
        base, width = slab.data_ptr(), slab.element_size()
        indices = [self._index[path] for path in adapter.modules]
        pairs = [
            (base + module.a.storage_offset() * width, base + module.b.storage_offset() * width, module.a.shape[0])
            for module in adapter.modules.values()
        ]
        return np.array(indices, dtype=np.int64), np.array(pairs, dtype=np.int64)
