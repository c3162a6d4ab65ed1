"""Batched LoRA and what lies between a layer's products: each op a contract, a torch reference and compiled forms.

kernels/README.md has the contracts in one table, and the figures.
"""

from loramux_kernels.attention import paged_decode
from loramux_kernels.backend import Backend, select_backend
from loramux_kernels.layers import rms_norm, rotate_and_store, silu_mul
from loramux_kernels.lora import lora_embedding, lora_expand, lora_group, lora_linear, lora_shrink
from loramux_kernels.segments import Segments
from loramux_kernels.slot_weights import SlotWeights

__all__ = [
    "Backend",
    "Segments",
    "SlotWeights",
    "lora_embedding",
    "lora_expand",
    "lora_group",
    "lora_linear",
    "lora_shrink",
    "paged_decode",
    "rms_norm",
    "rotate_and_store",
    "select_backend",
    "silu_mul",
]
