"""LLMOptions: the keyword arguments of LLM, which are EngineArgs' fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from loramux.config import BaseMatch, DeviceName, DTypeName, Kernels, KVCacheDType, Quantization


class LLMOptions(TypedDict, total=False):
    """What LLM takes besides the model; see EngineArgs for the meanings and defaults."""

    tokenizer: str | None
    served_model_name: str | Sequence[str]
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    max_cpu_loras: int | None
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: DTypeName
    kv_cache_dtype: KVCacheDType
    quantization: Quantization | None
    device: DeviceName
    kernels: Kernels
    seed: int
    kv_cache_memory_bytes: int | None
    memory_utilization: float
    block_size: int
    enable_prefix_caching: bool
    base_match: BaseMatch
    slot_wait_limit: int
