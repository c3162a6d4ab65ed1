"""LoRAModel: where in the base model LoRA can act, and the adapter slots' weights at each of these places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    """The adapter slots of one model. Owned by the engine thread.

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
        self._placed: dict[int, PackedAdapter] = {}
        self.num_placements = 0
        self.table = SlotTable(len(targets), num_slots, model.device)
        for index, (path, target) in enumerate(targets.items()):
            weights = SlotWeights(
                num_slots,
                target.in_features,
                target.out_features,
                dtype,
                model.device,
                max_rank=max_rank,
                table=self.table,
                module=index,
            )
            module = model.get_submodule(path)
            if product := linears.get(module):
                product.attach(module, weights)
            else:
                attach_lora(module, target, weights)
            self._modules[path] = weights

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into a slot, in the place of what was there; steps launched before still see the old one."""
        self.clear(slot)
        placed = adapter if self._memory is None else self._memory.take(slot, adapter)
        for path, module in placed.modules.items():
            self._modules[path].set(slot, module.a, module.b)
        self.table.flip()
        self._placed[slot] = placed
        self.num_placements += 1

    def clear(self, slot: int) -> None:
        """Empty a slot, and let go of the memory it held."""
        self._take_out(slot)
        self.table.flip()

    def _take_out(self, slot: int) -> None:
        placed = self._placed.pop(slot, None)
        if placed is None:
            return
        for path in placed.modules:
            self._modules[path].clear(slot)
        if self._memory is not None:
            self._memory.release(slot)

    def prefetch(self, adapters: Sequence[PackedAdapter]) -> None:
        """Bring adapters that are waited for, the next one first, closer to their slots, as far as there is room."""
        if self._memory is not None:
            self._memory.prefetch(adapters)

    def is_ready(self, digest: str) -> bool:
        """Whether an adapter that is in no slot can be placed without a step waiting for it."""
        return self._memory is None or self._memory.is_ready(digest)
