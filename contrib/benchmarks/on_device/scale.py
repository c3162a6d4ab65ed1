"""Scale: how much of everything gpu.py measures, in full and tiny."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from costs.model_shape import LLAMA_3_1_8B, ModelShape
from on_device.attention_numerics import AttentionShapes
from on_device.decoding import DecodeLoad
from on_device.numerics import Shapes
from on_device.op_speed import Load

MAX_LENGTH = 4096
"""Of a sequence."""
MANY_LAYERS = 8
"""Whose weights no cache holds: the ops are timed on these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """model, dtype: what engines serve. num_cached_tokens: of all sequences that run.

    roofline_loads: of the op beside its bytes; peers_decode, peers_prefill: beside the peers'. num_streamed adapters
    are used while num_cold others are loaded.
    """

    model: ModelShape
    dtype: torch.dtype
    num_cached_tokens: int
    shapes: Shapes
    attention: AttentionShapes
    decode_loads: Sequence[DecodeLoad]
    num_steps: int
    prompt_tokens: int
    roofline_loads: Sequence[Load]
    peers_decode: Load
    peers_prefill: Load
    num_streamed: int
    num_cold: int

    @property
    def kv_bytes(self) -> int:
        """Memory for keys and values of the tokens that run."""
        per_layer = 2 * self.model.num_kv_heads * self.model.head_dim * self.dtype.itemsize
        return self.num_cached_tokens * per_layer * self.model.num_layers

    @property
    def op_model(self) -> ModelShape:
        return replace(self.model, num_layers=min(self.model.num_layers, MANY_LAYERS))

    @property
    def max_batch_size(self) -> int:
        return max(load.batch_size for load in self.decode_loads)

    @property
    def max_adapters(self) -> int:
        """In one batch."""
        return max(load.num_adapters for load in self.decode_loads)

    @property
    def num_adapters(self) -> int:
        return max(self.max_adapters, self.num_streamed + self.num_cold)


def full(num_layers: int) -> Scale:
    """What the goals are about: layers of Llama-3.1-8B, all 32 of them or as many as fit the device."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return Scale(
        model=replace(LLAMA_3_1_8B, num_layers=num_layers),
        dtype=torch.bfloat16,
        num_cached_tokens=8 * MAX_LENGTH,
        shapes=Shapes(
            features=((64, 576), (576, 64), (1000, 2049), (2049, 1000), (4096, 8192), (8192, 4096)),
            rows=(1, 3, 63, 100, 1024, 8192),
            ranks=(*((rank,) * 4 for rank in (1, 4, 8, 17, 64, 128, 256)), (8, 0, 1, 64, 17, 128, 256, 8)),
            mixes=("none", "identical", "distinct", "zipf", "skewed"),
            dtypes=dtypes,
        ),
        attention=AttentionShapes(
            heads=((32, 8, 128), (9, 3, 64), (8, 8, 128), (16, 1, 256)),
            chunks=((0, 1), (0, 16), (15, 17), (100, 1), (1000, 63), (4000, 96)),
            windows=(None, 64),
            caps=(None, 30.0),
            dtypes=dtypes,
        ),
        decode_loads=[DecodeLoad(1, 1), *(DecodeLoad(size, number) for size in (32, 128) for number in (8, 32))],
        num_steps=64,
        prompt_tokens=64,
        roofline_loads=[Load("decode", 32, 32, (rank,), rank) for rank in (16, 64)],
        peers_decode=Load("decode", 32, 8, (8, 16, 32, 64), 64),
        peers_prefill=Load("prefill", 2048, 8, (8, 16, 32, 64), 64, is_decode=False),
        num_streamed=4,
        num_cold=16,
    )


def tiny() -> Scale:
    """The same in seconds on a CPU: to see that it runs and counts right."""
    return Scale(
        model=ModelShape(
            name="tiny",
            hidden=64,
            intermediate=96,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            vocab_size=512,
        ),
        dtype=torch.float32,
        num_cached_tokens=8 * MAX_LENGTH,
        shapes=Shapes(
            features=((72, 136),),
            rows=(20,),
            ranks=((8, 0, 17),),
            mixes=("identical", "zipf"),
            dtypes=(torch.float32, torch.float16),
        ),
        attention=AttentionShapes(
            heads=((4, 2, 16),),
            chunks=((0, 1), (15, 3)),
            windows=(None, 8),
            caps=(None, 30.0),
            dtypes=(torch.float32, torch.float16),
        ),
        decode_loads=[DecodeLoad(1, 1), DecodeLoad(4, 2)],
        num_steps=2,
        prompt_tokens=5,
        roofline_loads=[Load("decode", 2, 2, (8,), 8)],
        peers_decode=Load("decode", 2, 2, (4, 8), 8),
        peers_prefill=Load("prefill", 8, 2, (4, 8), 8, is_decode=False),
        num_streamed=2,
        num_cold=2,
    )
