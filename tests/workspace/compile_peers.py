"""Compile the peers' kernels ahead of time for some targets, with no GPU; print what each needs as JSON lines.

Run by test_gpu_benchmark.py in a process of its own: `python compile_peers.py 80 90`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "contrib" / "benchmarks"))
from on_device import peers_lora_triton as peers  # noqa: E402 - found on the path of just now

POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16"}
MAPPING = {"rows_ptr": "*i32", "counts_ptr": "*i32", "starts_ptr": "*i32", "num_rows": "i32"}
BLOCKS = {"RANK": 64, "BLOCK_M": peers.BLOCK_ROWS, "BLOCK_R": peers.BLOCK_RANK}


def main(arch: int) -> None:
    for rows in POINTERS.values():
        shrink = {"x_ptr": rows, "a_ptr": rows, "buffer_ptr": "*fp32", **MAPPING, "in_features": "i32"}
        expand = {"buffer_ptr": "*fp32", "slices_ptr": "*i64", "y_ptr": rows, **MAPPING, "stride_ym": "i32"}
        kernels = (
            (peers._peers_shrink_kernel, shrink | {"num_slots": "i32"}, {"SPLITS": 64, "BLOCK_K": peers.BLOCK_INPUTS}),
            (peers._peers_expand_kernel, expand | {"num_slices": "i32"}, {"BLOCKS_N": 32, "BLOCK_N": 128}),
        )
        for kernel, types, constants in kernels:
            values = BLOCKS | constants
            source = ASTSource(
                kernel,
                types | dict.fromkeys(values, "constexpr"),
                {(kernel.arg_names.index(name),): value for name, value in values.items()},
                {
                    (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
                    for name in types
                    if types[name].startswith("*")
                },
            )
            options = {"num_warps": 4, "num_stages": peers.STAGES[kernel.__name__], "enable_fp_fusion": True}
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            ptx = compiled.asm["ptx"]
            adds_atomically = re.search(r"\b(red|atom)\.global", ptx) is not None
            line = {"shared": compiled.metadata.shared, "wgmma": "wgmma" in ptx, "adds_atomically": adds_atomically}
            print(json.dumps(line))  # noqa: T201


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(int(argument))
