"""What Triton would compile for the launches of a process that runs under its interpreter, which compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature


class Compilations:
    """The kernels launched, each with the key under which Triton keeps what it has compiled: by Triton's own rules."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.num_launches = 0
        self._backend = make_backend(GPUTarget("cuda", 90, 32))
        self._binders: dict[str, Callable[..., Any]] = {}

    def note(self, kernel: InterpretedFunction, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        _bound, specialization, options = self._binder(kernel)(*arguments, **named)
        self.num_launches += 1
        self.keys.add(f"{kernel.__name__} {compute_cache_key({}, specialization, options)}")

    def _binder(self, kernel: InterpretedFunction) -> Callable[..., Any]:
        if kernel.__name__ not in self._binders:
            function = JITFunction(kernel.fn, **kernel.kwargs)
            self._binders[kernel.__name__] = create_function_from_signature(
                function.signature, function.params, self._backend
            )
        return self._binders[kernel.__name__]


@contextmanager
def record_compilations() -> Iterator[Compilations]:
    """Note every launch meanwhile."""
    compilations = Compilations()
    run = InterpretedFunction.run

    def noting(kernel: InterpretedFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        compilations.note(kernel, arguments, named)
        return run(kernel, *arguments, grid=grid, warmup=warmup, **named)

    InterpretedFunction.run = noting
    try:
        yield compilations
    finally:
        InterpretedFunction.run = run
