"""The LoRA kernels as their launchers start them."""

from __future__ import annotations

import torch
from compilation import POINTERS, ArgumentType, Compilation

from loramux_kernels import lora_tiles, lora_triton
from loramux_kernels.segments import PIECE_ROWS


def compilations(dtype: torch.dtype, *, is_amd: bool) -> list[Compilation]:
    """The fused kernel for the most members that share x, q, k and v, and for the tiles of either highest rank."""
    rows = POINTERS[dtype]
    found = [
        _fused("fused", rows, dtype, 64, is_amd=is_amd),
        _shrink(rows, dtype),
        _expand("shrunk", "*fp32", rows, dtype, is_amd=is_amd),
        _expand("token", "*i64", rows, dtype, is_amd=is_amd),
    ]
    if dtype == torch.float16:  # one dtype is enough for the forms that are a part of another, or drop its hints
        found += [
            _fused("fused up to rank 16", rows, dtype, 16, is_amd=is_amd),
            _fused("fused with odd sizes", rows, dtype, 64, is_amd=is_amd, scalars_divisible=False),
        ]
    return found


def _sizes(*names: str) -> dict[str, ArgumentType]:
    return dict.fromkeys(("stride_table", "in_features", *names), "i32")


def _fused(
    name: str, rows: str, dtype: torch.dtype, max_rank: int, *, is_amd: bool, scalars_divisible: bool = True
) -> Compilation:
    members: dict[str, ArgumentType] = {"tables": ("*i64",) * 3, "firsts": ("i32",) * 3, "widths": ("i32",) * 3}
    pointers: dict[str, ArgumentType] = {
        "x_ptr": rows,
        "y_ptr": rows,
        "sums_ptr": "*fp32",
        "work_ptr": "*i32",
        "counters_ptr": "*i32",
        **members,
    }
    sizes = _sizes("stride_xm", "stride_ym", "columns", "split", "max_rank", *lora_triton.OF_THE_BATCH)
    return Compilation(
        name,
        lora_triton._lora_fused_kernel,
        {**pointers, **sizes},
        {
            "PRECISION": lora_tiles.precision("x", dtype, is_amd=is_amd),
            "BLOCK_M": PIECE_ROWS,
            "TILES": lora_tiles.tiles_up_to(dtype.itemsize, max_rank),
            **lora_triton.COUNTING,
        },
        lora_tiles.LAUNCH,
        scalars_divisible,
        lora_triton.OF_THE_BATCH,
    )


def _shrink(rows: str, dtype: torch.dtype) -> Compilation:
    pointers: dict[str, ArgumentType] = {"x_ptr": rows, "out_ptr": "*fp32", "table_ptr": "*i64", "work_ptr": "*i32"}
    return Compilation(
        "shrink",
        lora_triton._lora_shrink_kernel,
        {**pointers, **_sizes("stride_xm", "stride_om", "split")},
        {"BLOCK_M": PIECE_ROWS, "TILES": lora_tiles.tiles_up_to(dtype.itemsize, 64)},
        lora_tiles.LAUNCH,
    )


def _expand(left: str, left_rows: str, rows: str, dtype: torch.dtype, *, is_amd: bool) -> Compilation:
    pointers: dict[str, ArgumentType] = {"left_ptr": left_rows, "y_ptr": rows, "table_ptr": "*i64", "work_ptr": "*i32"}
    constants = {"LEFT": left, "PRECISION": lora_tiles.precision(left, dtype, is_amd=is_amd), "BLOCK_M": PIECE_ROWS}
    tiles = {"TILES": lora_tiles.tiles_up_to(dtype.itemsize, 64)}
    return Compilation(
        f"expand of {left}",
        lora_triton._lora_expand_kernel,
        {**pointers, **_sizes("out_features", "stride_lm", "stride_ym", "columns"), "scale": "fp32"},
        {**constants, **tiles},
        lora_tiles.LAUNCH,
    )
