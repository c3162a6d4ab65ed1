"""Which half of an op runs: the torch reference, or the Triton kernels.

Unless one is selected, tensors decide: CPU tensors take torch, CUDA tensors take Triton. The Triton interpreter serves
tests; it runs only when TRITON_INTERPRET=1 is set and "triton" is selected by name.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

Backend = Literal["torch", "triton"]

_selected: list[Backend] = []  # empty: the tensors decide


def select_backend(backend: Backend | None) -> None:
    """Choose the backend of every op of this process; None gives the choice back to the tensors."""
    if backend not in ("torch", "triton", None):
        raise ValueError(f"backend={backend!r} is not one of 'torch', 'triton', None")
    _selected[:] = [] if backend is None else [backend]


def use_triton(tensor: torch.Tensor) -> bool:
    """Say whether an op on this tensor runs the Triton kernels; raises RuntimeError where they cannot run."""
    if not _selected and not tensor.is_cuda:
        return False
    if _selected and _selected[0] == "torch":
        return False
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if is_interpreted and not _selected:
        raise RuntimeError(
            "TRITON_INTERPRET=1 is set, but the interpreter is for tests: unset it, or call select_backend('triton')"
        )
    if not is_interpreted and not tensor.is_cuda:
        raise RuntimeError(f"backend 'triton' needs CUDA tensors, got one on {tensor.device}: use 'torch'")
    return True
