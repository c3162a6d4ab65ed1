"""What is launched of Triton's kernels, seen at the dispatch: which kernel, its grid, and every argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class Launch:
    """One launch; a tensor stands as its address, shape and strides, which is what a captured graph keeps of it."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    constants: tuple[tuple[str, object], ...]


@dataclass
class Launches:
    """The launches since the recorder was made, in their order; `run=False` lets none of them compute."""

    seen: list[Launch] = field(default_factory=list)
    run: bool = True

    def record(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note every launch of the module's kernels from now on."""
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, _Recorded(name, getattr(module, name), self))


@dataclass(frozen=True)
class _Recorded:
    name: str
    kernel: Any
    launches: Launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **constants: object) -> None:
            shown = tuple(_shown(argument) for argument in arguments)
            self.launches.seen.append(Launch(self.name, grid, shown, tuple(sorted(constants.items()))))
            if self.launches.run:
                self.kernel[grid](*arguments, **constants)

        return launch


def _shown(argument: object) -> object:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr(), tuple(argument.shape), argument.stride()
    return tuple(_shown(one) for one in argument) if isinstance(argument, tuple) else argument
