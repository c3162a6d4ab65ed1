"""The attention kernels as their launchers compile them, for the layers of common families: see compile_kernels.py."""

from __future__ import annotations

from typing import Any

import torch
import triton
from compilation import POINTERS, Compilation

from loramux_kernels import attention_triton as kernels

STRIDES = {"table_width": "i32", "stride_qm": "i32", "stride_om": "i32", "stride_kt": "i32", "stride_vt": "i32"}
SEQUENCES = {"lengths_ptr": "*i64", "rows_ptr": "*i64"}
PARTS = {"sums_ptr": "*fp32", "stats_ptr": "*fp32"}
# name → query heads, KV heads, widths of a key and a value, and whether there are a window, a soft cap and sinks
LAYERS = {
    "llama": (32, 8, 128, 128, ()),
    "phi": (32, 32, 80, 80, ()),
    "gpt_oss": (64, 8, 64, 64, ("window", "sinks_ptr")),
    "gemma2": (8, 4, 256, 256, ("window", "softcap")),
    "deepseek": (16, 16, 192, 128, ()),
}


def compilations(dtype: torch.dtype, *, is_amd: bool) -> list[Compilation]:
    """Most layers in bfloat16, which most are served in; one in each of the other dtypes."""
    layers = {torch.float32: ["llama"], torch.float16: ["deepseek"]}.get(dtype, ["llama", "phi", "gpt_oss", "gemma2"])
    found = [one for layer in layers for one in _attending(layer, dtype, is_amd=is_amd)]
    return [*found, *_moving(layers[0], dtype), *_moving("phi", dtype)]


def _attending(name: str, dtype: torch.dtype, *, is_amd: bool) -> list[Compilation]:
    """Prefill, and decode over a table of which some sequences may be split, or none."""
    num_heads, num_kv_heads, key_dim, value_dim, _options = LAYERS[name]
    rows = POINTERS[dtype]
    keys, values = (
        torch.empty(1, 16, num_kv_heads, width, dtype=dtype, device="meta") for width in (key_dim, value_dim)
    )
    given, absent = _optional(name, rows)
    tensors = {"query_ptr": rows, "keys_ptr": rows, "values_ptr": rows, "out_ptr": rows, "tables_ptr": "*i64"}
    tensors |= STRIDES | {"scale": "fp32"} | given
    absent |= {"PRECISION": kernels.dot_precision(dtype, is_amd=is_amd)}
    prefills = absent | kernels.tile_constants(num_heads, keys, values, kernels.PREFILL["BLOCK_M"])
    decodes = absent | kernels.tile_constants(num_heads, keys, values, kernels.DECODE["BLOCK_M"]) | kernels.SPLIT
    decode, prefill = kernels._paged_decode_kernel, kernels._paged_prefill_kernel
    found = [
        _compilation(f"prefill {name}", prefill, tensors | {"work_ptr": "*i32"}, prefills, kernels.PREFILL),
        _compilation(f"decode {name}", decode, tensors | SEQUENCES | PARTS, decodes, kernels.DECODE),
    ]
    if name == "llama":
        unsplit = decodes | dict.fromkeys(PARTS)
        found.append(_compilation(f"unsplit {name}", decode, tensors | SEQUENCES, unsplit, kernels.DECODE))
    return found


def _moving(name: str, dtype: torch.dtype) -> list[Compilation]:
    """The kernels without products: what combines splits, and what writes to the cache."""
    _num_heads, num_kv_heads, key_dim, value_dim, _options = LAYERS[name]
    rows = POINTERS[dtype]
    given, absent = ({key: value for key, value in one.items() if key != "softcap"} for one in _optional(name, rows))
    combined = SEQUENCES | PARTS | {"num_splits": "i32", "stride_om": "i32", "out_ptr": rows} | given
    combines = kernels.SPLIT | {"VALUE_DIM": value_dim, "BLOCK_E": triton.next_power_of_2(value_dim)} | absent
    stored = dict.fromkeys(("key_ptr", "value_ptr", "keys_ptr", "values_ptr"), rows) | {"slots_ptr": "*i64"}
    stored |= dict.fromkeys(("stride_km", "stride_kh", "stride_vm", "stride_vh"), "i32")
    stores = {"NUM_KV_HEADS": num_kv_heads, "KEY_DIM": key_dim, "VALUE_DIM": value_dim}
    return [
        _compilation(f"combine {name}", kernels._combine_splits_kernel, combined, combines, kernels.COMBINE),
        _compilation(f"store {name}", kernels._store_kv_kernel, stored, stores, kernels.STORE),
    ]


def _optional(name: str, rows: str) -> tuple[dict[str, str], dict[str, object]]:
    """Types of what a layer's rule of scores has, and None for what it has not."""
    types = {"window": "i32", "softcap": "fp32", "sinks_ptr": rows}
    given = {key: kind for key, kind in types.items() if key in LAYERS[name][-1]}
    return given, {key: None for key in types if key not in given}


def _compilation(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], launch: dict[str, int]
) -> Compilation:
    """A launcher's table holds both the tiles that a kernel is compiled for and how it is launched."""
    options = {key: value for key, value in launch.items() if key.startswith("num_")}
    tiles = {key: value for key, value in launch.items() if key not in options}
    return Compilation(name, kernel, types, constants | tiles, options)
