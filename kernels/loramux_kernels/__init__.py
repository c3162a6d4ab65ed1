"""Batched LoRA, products by weights in panels or of int8, and what lies between products.

Each op has a contract, a torch reference and compiled forms.
kernels/README.md has the contracts in one table, and the figures.
"""

from loramux_kernels.attention import ScoreRule, paged_decode, paged_prefill, store_kv
from loramux_kernels.backend import Backend, select_backend
from loramux_kernels.int8 import Int8Weight, int8_linear, quantize_int8
from loramux_kernels.layers import add_rows, rms_norm, rotate_and_store, silu_mul
from loramux_kernels.lora import lora_embedding, lora_expand, lora_group, lora_linear, lora_shrink
from loramux_kernels.packed import PackedWeight, pack_weight, packed_linear
from loramux_kernels.prefill_batch import PrefillBatch
from loramux_kernels.segments import AnySegments, SegmentBuffer, Segments
from loramux_kernels.slot_table import SlotTable
from loramux_kernels.slot_weights import SlotWeights

__all__ = [
    "AnySegments",
    "Backend",
    "Int8Weight",
    "PackedWeight",
    "PrefillBatch",
    "ScoreRule",
    "SegmentBuffer",
    "Segments",
    "SlotTable",
    "SlotWeights",
    "add_rows",
    "int8_linear",
    "lora_embedding",
    "lora_expand",
    "lora_group",
    "lora_linear",
    "lora_shrink",
    "pack_weight",
    "packed_linear",
    "paged_decode",
    "paged_prefill",
    "quantize_int8",
    "rms_norm",
    "rotate_and_store",
    "select_backend",
    "silu_mul",
    "store_kv",
]
