"""Compile every kernel ahead of time for one target, with no GPU, and print what each needs as JSON lines.

Run by test_compiled.py in a process of its own: `python compile_kernels.py cuda:90 float16 bfloat16`.
"""

from __future__ import annotations

import json
import sys

import compiled_attention
import compiled_layers
import compiled_lora
import torch
from compilation import registers, spills
from triton.backends.compiler import GPUTarget

REGISTRY = (
    compiled_attention.compilations,
    compiled_layers.compilations,
    compiled_lora.compilations,
)  # a kernel that is not here is not shipped


def main(name: str, *dtypes: str) -> None:
    backend, arch = name.split(":")
    target = GPUTarget("cuda", int(arch), 32) if backend == "cuda" else GPUTarget("hip", arch, 64)
    for dtype in dtypes:
        for compilations in REGISTRY:
            for compilation in compilations(getattr(torch, dtype), is_amd=backend == "hip"):
                compiled = compilation.compile(target)
                line = {
                    "kernel": compilation.kernel.__name__,
                    "form": f"{compilation.name}, {dtype}",
                    "shared": compiled.metadata.shared,
                    "spills": spills(compiled),
                    "registers": registers(compiled),
                    "block_m": compilation.constants.get("BLOCK_M"),
                    "num_stages": compilation.options["num_stages"],
                    "wgmma": "wgmma" in compiled.asm.get("ptx", ""),
                }
                print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
