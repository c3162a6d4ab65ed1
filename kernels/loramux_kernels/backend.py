"""Which form of an op runs: the torch reference, the compiled loops of numba, or the Triton kernels.

Unless one is selected, tensors decide: CUDA tensors take Triton; float32 tensors on a CPU take numba where an op has
such a form and torch's threads can be entered (`team`); everything else takes torch. The Triton interpreter serves
tests; it runs only when TRITON_INTERPRET=1 is set and "triton" is selected by name.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

from loramux_kernels.team import has_team

Backend = Literal["torch", "numba", "triton"]

ITEM_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What adapters, keys and values may be beside rows of float32 on a CPU: in registers all are float32."""

_selected: list[Backend] = []  # empty: the tensors decide


def select_backend(backend: Backend | None) -> None:
    """Choose the backend of every op of this process; None gives the choice back to the tensors."""
    if backend not in ("torch", "numba", "triton", None):
        raise ValueError(f"backend={backend!r} is not one of 'torch', 'numba', 'triton', None")
    _selected[:] = [] if backend is None else [backend]


def use_triton(tensor: torch.Tensor) -> bool:
    """Say whether an op on this tensor runs the Triton kernels; raises RuntimeError where they cannot run."""
    if not _selected and not tensor.is_cuda:
        return False
    if _selected and _selected[0] != "triton":
        return False
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if is_interpreted and not _selected:
        raise RuntimeError(
            "TRITON_INTERPRET=1 is set, but the interpreter is for tests: unset it, or call select_backend('triton')"
        )
    if not is_interpreted and not tensor.is_cuda:
        raise RuntimeError(f"backend 'triton' needs CUDA tensors, got one on {tensor.device}: use 'torch'")
    return True


def use_numba(tensor: torch.Tensor) -> bool:
    """Say whether an op on this tensor runs the loops of numba; RuntimeError where selected but unable."""
    can_run = tensor.dtype is torch.float32 and tensor.device.type == "cpu" and has_team()
    if _selected and _selected[0] == "numba" and not can_run:
        raise RuntimeError(
            "backend 'numba' needs float32 tensors on a CPU, numba, and torch built with GNU OpenMP: "
            f"got {tensor.dtype} on {tensor.device}"
        )
    return can_run and (not _selected or _selected[0] == "numba")
