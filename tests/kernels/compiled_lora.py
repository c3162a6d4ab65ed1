"""The LoRA kernels as their launchers start them."""

from __future__ import annotations

import torch
from compilation import POINTERS, ArgumentType, Compilation

from loramux_kernels import lora_triton
from loramux_kernels.segments import PIECE_ROWS


def compilations(dtype: torch.dtype, *, is_amd: bool) -> list[Compilation]:
    """Each kernel for the most members that share x, q, k and v; the fused one for the tiles of either highest rank."""
    rows = POINTERS[dtype]
    found = [
        _fused("fused", rows, dtype, 64, is_amd=is_amd),
        _shrink(rows, dtype),
        _expand("shrunk", "*fp32", rows, dtype, members=3, is_amd=is_amd),
        _expand("token", "*i64", rows, dtype, members=1, is_amd=is_amd),
    ]
    if dtype == torch.float16:  # one dtype is enough for the forms that are a part of another, or drop its hints
        found += [
            _fused("fused up to rank 16", rows, dtype, 16, is_amd=is_amd),
            _fused("fused with odd sizes", rows, dtype, 64, is_amd=is_amd, scalars_divisible=False),
        ]
    return found


def _sizes(stride_in: str, stride_out: str) -> dict[str, ArgumentType]:
    return {"work_ptr": "*i32"} | dict.fromkeys(("stride_table", "in_features", stride_in, stride_out), "i32")


def _members(num_members: int) -> dict[str, ArgumentType]:
    return {"tables": ("*i64",) * num_members, "firsts": ("i32",) * num_members, "widths": ("i32",) * num_members}


def _fused(
    name: str, rows: str, dtype: torch.dtype, max_rank: int, *, is_amd: bool, scalars_divisible: bool = True
) -> Compilation:
    return Compilation(
        name,
        lora_triton._lora_fused_kernel,
        {"x_ptr": rows, "y_ptr": rows, **_members(3), **_sizes("stride_xm", "stride_ym"), "columns": "i32"},
        {
            "PRECISION": lora_triton.precision("x", dtype, is_amd=is_amd),
            "BLOCK_M": PIECE_ROWS,
            "TILES": lora_triton.fused_tiles(dtype.itemsize, max_rank),
        },
        lora_triton.LAUNCH,
        scalars_divisible,
    )


def _shrink(rows: str, dtype: torch.dtype) -> Compilation:
    tables: dict[str, ArgumentType] = {"tables": ("*i64",) * 3}
    return Compilation(
        "shrink",
        lora_triton._lora_shrink_kernel,
        {"x_ptr": rows, "out_ptr": "*fp32", **tables, **_sizes("stride_xm", "stride_om"), "max_rank": "i32"},
        {"BLOCK_M": PIECE_ROWS, "TILE": lora_triton.TILES[dtype.itemsize][-1].constants()},
        lora_triton.LAUNCH,
    )


def _expand(left: str, left_rows: str, rows: str, dtype: torch.dtype, *, members: int, is_amd: bool) -> Compilation:
    sizes = {**_sizes("stride_lm", "stride_ym"), "columns": "i32", "max_rank": "i32", "scale": "fp32"}
    return Compilation(
        f"expand of {left}",
        lora_triton._lora_expand_kernel,
        {"left_ptr": left_rows, "y_ptr": rows, **_members(members), **sizes},
        {"LEFT": left, "PRECISION": lora_triton.precision(left, dtype, is_amd=is_amd), **lora_triton.EXPAND},
        lora_triton.LAUNCH,
    )
