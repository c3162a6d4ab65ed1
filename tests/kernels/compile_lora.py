"""Compile every LoRA kernel ahead of time for one target, with no GPU, and print what each needs as JSON lines.

Run by test_lora_triton.py in a process of its own: `python compile_lora.py cuda:90`. The launch constants are the
launchers' own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loramux_kernels import lora_triton

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
OPTIONS = ("num_warps", "num_stages")


def kernels(dtype: torch.dtype, *, is_amd: bool) -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """Name → (kernel, argument types, constants and options as the launcher gives them)."""
    tables = {"table_ptr": "*i64", "work_ptr": "*i32", "num_slots": "i32"}
    rows = POINTERS[dtype]
    shrink = {"x_ptr": rows, "out_ptr": "*fp32", **tables, "in_features": "i32", "stride_xm": "i32", "stride_om": "i32"}
    gather = {"ids_ptr": "*i64", "out_ptr": "*fp32", **tables, "in_features": "i32", "stride_om": "i32"}
    expand = {"shrunk_ptr": "*fp32", "y_ptr": rows, **tables, "out_features": "i32", "stride_sm": "i32"}
    expand |= {"stride_ym": "i32", "scale": "fp32"}
    precision = lora_triton.expand_precision(dtype, is_amd=is_amd)
    aligned, unaligned = {"ALIGNED": True}, {"ALIGNED": False}
    shrinks, expands = lora_triton.SHRINK, {"PRECISION": precision, **lora_triton.EXPAND}
    gathers = {"ELEMENT": lora_triton.ELEMENTS[dtype], **lora_triton.GATHER}
    found = {
        "shrink": (lora_triton._lora_shrink_kernel, shrink, aligned | shrinks),
        "gather": (lora_triton._lora_gather_kernel, gather, gathers),
        "expand": (lora_triton._lora_expand_kernel, expand, aligned | expands),
    }
    if dtype == torch.float16:  # one dtype is enough for the forms that only drop hints
        found["shrink unaligned"] = (lora_triton._lora_shrink_kernel, shrink, unaligned | shrinks)
        found["expand unaligned"] = (lora_triton._lora_expand_kernel, expand, unaligned | expands)
    return found


def compile_kernel(target: GPUTarget, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> Any:
    """Compile as for a call whose addresses and sizes are multiples of 16 where the launcher cannot know better."""
    values = {name: value for name, value in constants.items() if name not in OPTIONS}
    signature = types | dict.fromkeys(values, "constexpr")
    unaligned = values.get("ALIGNED") is False
    divisible = [name for name in types if name != "scale" and (types[name].startswith("*") or not unaligned)]
    positions = {name: (kernel.arg_names.index(name),) for name in signature}
    source = ASTSource(
        kernel,
        signature,
        {positions[name]: value for name, value in values.items()},
        {positions[name]: [["tt.divisibility", 16]] for name in divisible},
    )
    options = {name: constants[name] for name in OPTIONS} | {"enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def spills(compiled: Any) -> int:
    """Bytes (NVIDIA) or registers (AMD) that the kernel spills."""
    if "amdgcn" in compiled.asm:
        return sum(int(n) for n in re.findall(r"[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"]))
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


def main(name: str) -> None:
    backend, arch = name.split(":")
    target = GPUTarget("cuda", int(arch), 32) if backend == "cuda" else GPUTarget("hip", arch, 64)
    for dtype in POINTERS:
        for kernel_name, (kernel, types, constants) in kernels(dtype, is_amd=backend == "hip").items():
            compiled = compile_kernel(target, kernel, types, constants)
            line = {
                "kernel": f"{kernel_name} {dtype}",
                "shared": compiled.metadata.shared,
                "spills": spills(compiled),
                "wgmma": "wgmma" in compiled.asm.get("ptx", ""),
            }
            print(json.dumps(line))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
