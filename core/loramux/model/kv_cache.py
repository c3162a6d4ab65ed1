"""KVCache: the memory of the KV blocks, one pair of tensors per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loramux.model.host_memory import HugePages
from loramux_kernels import store_kv

NUM_SCRATCH_SLOTS = 7  # for the rows that pad a decode step: decode_inputs.bucket_sizes never pads with more


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps per token: its KV heads and the width of a key and of a value."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """keys[layer]: [num_blocks + scratch, block_size, num_kv_heads, key_dim]; values[layer] likewise with value_dim.

    dtype: of keys and values; what is written is rounded to it, and what is read is as it was written.
    Scratch blocks follow the others: room for NUM_SCRATCH_SLOTS tokens that belong to no sequence.
    Between two steps every number in it is finite: a masked NaN is still NaN, and would reach the block's next owner.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        pages = HugePages()
        num_in_all = num_blocks + -(-NUM_SCRATCH_SLOTS // block_size)
        for layer in layers:
            for tensors, width in ((self.keys, layer.key_dim), (self.values, layer.value_dim)):
                shape = (num_in_all, block_size, layer.num_kv_heads, width)
                # masked garbage must be finite: zero times NaN is NaN
                is_cpu = device.type == "cpu"
                tensors.append(pages.zeros(shape, dtype) if is_cpu else torch.zeros(shape, dtype=dtype, device=device))

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, kv_slots: torch.Tensor) -> None:
        """Store key and value [num_tokens, num_kv_heads, width] at kv_slots [num_tokens]."""
        store_kv(key, value, kv_slots, self.keys[layer], self.values[layer])

    def read(self, layer: int, block_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return key and value [*n, num_tokens, num_kv_heads, width] of the blocks in block_ids [*n, num_blocks]."""
        return _gather(self.keys[layer], block_ids), _gather(self.values[layer], block_ids)

    def are_usable(self, kv_slots: torch.Tensor) -> torch.Tensor:
        """Tell for each of kv_slots whether its last layer is finite: what goes wrong in any layer arrives there."""
        tensors = (self.keys[-1], self.values[-1])
        finite = [tensor.flatten(0, 1).index_select(0, kv_slots).isfinite().flatten(1).all(dim=1) for tensor in tensors]
        return finite[0] & finite[1]

    def clear(self, kv_slots: torch.Tensor) -> None:
        """Put zeros at kv_slots, in every layer."""
        for tensor in (*self.keys, *self.values):
            tensor.flatten(0, 1).index_fill_(0, kv_slots, 0)


def bytes_per_token(layers: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """How many bytes the KV of one token takes, over all layers."""
    return sum(layer.num_elements for layer in layers) * dtype.itemsize


def _gather(cache: torch.Tensor, block_ids: torch.Tensor) -> torch.Tensor:
    blocks = cache.index_select(0, block_ids.flatten())
    return blocks.view(*block_ids.shape[:-1], block_ids.shape[-1] * cache.shape[1], *cache.shape[2:])
