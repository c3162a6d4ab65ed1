"""What stands for CUDA graphs on a CPU: a computation done again over the same tensors, or a tape of its operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Compute = Callable[[], None]

HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")


class Recomputed:
    """Computes again: what is replayed sees the static tensors, and whatever else of the host has changed."""

    def __init__(self, compute: Compute) -> None:
        self.replay = compute


class Tape(TorchDispatchMode):
    """Runs the same operators on the same tensors again, and nothing of the host: what a CUDA graph does.

    Refuses, as capturing does, what reads a number from the device. Kernels that are not torch's are not on it.
    """

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        with self:
            compute()

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.name() in HOST_READS or any(function.name().startswith(f"{name}.") for name in HOST_READS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function.name()}")
        result = function(*arguments, **(named or {}))
        self._calls.append((function, arguments, named or {}, result))
        return result

    def replay(self) -> None:
        for function, arguments, named, outputs in self._calls:
            again = function(*arguments, **named)
            for output, tensor in zip(_tensors(outputs), _tensors(again), strict=True):
                if output.data_ptr() != tensor.data_ptr():
                    output.copy_(tensor)


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, tree)
    return found
