"""Compilation: one kernel as one launcher starts it, compiled ahead of time for a GPU that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}

ArgumentType = str | tuple[str, ...]


@dataclass(frozen=True)
class Compilation:
    """A kernel, the types of its arguments ("*fp16", "i32", a tuple of these), and constants and options of a launch.

    scalars_divisible: whether sizes and strides are multiples of 16; addresses always are. varying: sizes of which the
    launcher promises nothing.
    """

    name: str
    kernel: Any
    types: Mapping[str, ArgumentType]
    constants: Mapping[str, object]
    options: Mapping[str, int]
    scalars_divisible: bool = True
    varying: tuple[str, ...] = ()

    def compile(self, target: GPUTarget) -> Any:
        """Compile as for a call with such arguments."""
        index = {name: self.kernel.arg_names.index(name) for name in (*self.types, *self.constants)}
        divisible = [["tt.divisibility", 16]]
        attributes = {
            path: divisible
            for name, kind in self.types.items()
            if name not in self.varying
            for path in self._divisible_paths(index[name], kind)
        }
        source = ASTSource(
            self.kernel,
            dict(self.types) | dict.fromkeys(self.constants, "constexpr"),
            {(index[name],): value for name, value in self.constants.items()},
            attributes,
        )
        return triton.compile(source, target=target, options={**self.options, "enable_fp_fusion": True})

    def _divisible_paths(self, index: int, kind: ArgumentType) -> list[tuple[int, ...]]:
        if isinstance(kind, tuple):
            return [(index, place) for place, one in enumerate(kind) if self._is_divisible(one)]
        return [(index,)] if self._is_divisible(kind) else []

    def _is_divisible(self, kind: str) -> bool:
        return kind.startswith("*") or (kind == "i32" and self.scalars_divisible)


def spills(compiled: Any) -> int:
    """Bytes (NVIDIA) or registers (AMD) that the kernel spills."""
    if "amdgcn" in compiled.asm:
        return sum(int(n) for n in re.findall(r"[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"]))
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", _usage(compiled)))


def registers(compiled: Any) -> int:
    """Registers of a thread."""
    pattern, text = (
        (r"\.vgpr_count:\s*(\d+)", compiled.asm["amdgcn"])
        if "amdgcn" in compiled.asm
        else (r"REG:(\d+)", _usage(compiled))
    )
    return max(int(n) for n in re.findall(pattern, text))


def _usage(compiled: Any) -> str:
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        return subprocess.run([cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
