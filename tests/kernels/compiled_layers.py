"""The small ops' kernels as their launchers compile them, for the widths of an 8B and a 70B Llama."""

from __future__ import annotations

import torch
import triton
from compilation import POINTERS, Compilation

from loramux_kernels import layers_triton as kernels

LAYERS = {"8B": (4096, 32, 8, 128), "70B": (8192, 64, 8, 128)}  # hidden size, query heads, KV heads, their width


def compilations(dtype: torch.dtype, *, is_amd: bool) -> list[Compilation]:
    """Each op for each model; none has a product, whose precision would be the device's."""
    return [found for name in LAYERS for found in _model(name, POINTERS[dtype])]


def _model(name: str, rows: str) -> list[Compilation]:
    hidden, num_heads, num_kv_heads, dim = LAYERS[name]
    norm = {"x_ptr": rows, "weight_ptr": rows, "out_ptr": rows, "hidden": "i32", "stride_xm": "i32", "eps": "fp32"}
    gate = {"gate_up_ptr": rows, "out_ptr": rows, "width": "i32", "stride_xm": "i32"}
    rotate = dict.fromkeys(("qkv_ptr", "cos_ptr", "sin_ptr", "keys_ptr", "values_ptr"), rows)
    rotate |= {"slots_ptr": "*i64", "stride_xm": "i32"}
    heads = {"NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HALF": dim // 2}
    block = {"BLOCK": triton.next_power_of_2(hidden)}
    return [
        Compilation(f"rms_norm {name}", kernels._rms_norm_kernel, norm, block, kernels.NORM),
        Compilation(
            f"silu_mul {name}",
            kernels._silu_mul_kernel,
            gate,
            {"BLOCK": kernels.GATE["BLOCK"]},
            _options(kernels.GATE),
        ),
        Compilation(
            f"rotate_and_store {name}",
            kernels._rotate_and_store_kernel,
            rotate,
            heads | {"BLOCK": dim // 2, "HEADS": kernels.ROTATE["HEADS"]},
            _options(kernels.ROTATE),
        ),
    ]


def _options(launch: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in launch.items() if name.startswith("num_")}
