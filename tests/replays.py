"""What stands for CUDA graphs on a CPU: a computation done again over the same tensors, or a tape of its launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers.utils.import_utils
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

Compute = Callable[[], None]

HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")


class Recomputed:
    """Computes again: what is replayed sees the static tensors, and whatever else of the host has changed."""

    def __init__(self, compute: Compute) -> None:
        self.replay = compute


class Tape(TorchDispatchMode):
    """Launches the same operators and Triton kernels on the same tensors again, and nothing of the host.

    That is what a CUDA graph does. Refuses, as capturing does, what reads a number from the device. Loops of numba are
    not on it.
    """

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self._launches: list[Callable[[], object]] = []
        with _while_capturing(), self._noting_kernels(), self:
            compute()

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.name().partition(".")[0] in HOST_READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function.name()}")
        named = named or {}
        result = function(*arguments, **named)
        self._launches.append(partial(_compute_again, function, arguments, named, result))
        return result

    def replay(self) -> None:
        for launch in self._launches:
            launch()

    @contextmanager
    def _noting_kernels(self) -> Iterator[None]:
        if os.environ.get("TRITON_INTERPRET") != "1":
            yield
            return
        from triton.runtime.interpreter import InterpretedFunction

        run = InterpretedFunction.run

        def noting(*arguments: Any, **named: Any) -> Any:
            launch = partial(run, *arguments, **named)
            self._launches.append(launch)
            with _disable_current_modes():  # what the interpreter does with tensors is not on the tape
                return launch()

        InterpretedFunction.run = noting
        try:
            yield
        finally:
            InterpretedFunction.run = run


def _compute_again(function: Any, arguments: Any, named: Any, outputs: Any) -> None:
    again = function(*arguments, **named)
    for output, tensor in zip(_tensors(outputs), _tensors(again), strict=True):
        if output.data_ptr() != tensor.data_ptr():
            output.copy_(tensor)


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, tree)
    return found


@contextmanager
def _while_capturing() -> Iterator[None]:
    """Let transformers see that it is captured: it then leaves out what it would look up on the device."""
    module = transformers.utils.import_utils
    asked, module.is_cuda_stream_capturing = module.is_cuda_stream_capturing, lambda: True
    try:
        yield
    finally:
        module.is_cuda_stream_capturing = asked
