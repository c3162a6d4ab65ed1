"""Batched LoRA ops for mixed adapters: each a contract, a torch reference and Triton kernels (kernels/README.md)."""

from loramux_kernels.backend import Backend, select_backend
from loramux_kernels.lora import lora_embedding, lora_expand, lora_linear, lora_shrink
from loramux_kernels.segments import Segments
from loramux_kernels.slot_weights import SlotWeights

__all__ = [
    "Backend",
    "Segments",
    "SlotWeights",
    "lora_embedding",
    "lora_expand",
    "lora_linear",
    "lora_shrink",
    "select_backend",
]
