"""Compiled loops on the threads of torch's own operators.

torch's CPU operators share one OpenMP team per calling thread. A second pool beside it would fight it for the cores:
OpenMP threads spin for a while after their work. So a loop here enters the very team that torch entered a moment ago,
by `GOMP_parallel` of the OpenMP library that torch brought along.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from pathlib import Path
from typing import Any, Protocol

import torch

from loramux_kernels.recording import Call, Renew, recording


class Compiled(Protocol):
    """A function `void f(int64 *arguments)` in machine code."""

    @property
    def address(self) -> int: ...


class Loop:
    """A compiled loop over items, each of which one thread computes.

    The function is entered by every thread of the team. Its arguments are int64: the number of the next item, which
    the threads count up atomically, the number of items, then what `run` is given; addresses and sizes, as a rule.
    Which thread computes an item changes nothing in its result. `run` holds no GIL while it computes.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled  # owns the machine code
        self.address = compiled.address
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)

    def run(self, num_items: int, *arguments: int, alone: bool = False, renew: Renew | None = None) -> None:
        """Compute all items and return; `alone` keeps a loop too short for a team on the calling thread."""
        if recording.calls is not None:
            recording.calls.append(Call(self, (num_items, *arguments), renew))
        values = array("q", (0, num_items, *arguments))
        address = values.buffer_info()[0]
        if alone or num_items < 2 or (num_threads := torch.get_num_threads()) < 2:
            self._alone(address)
        else:
            _openmp().GOMP_parallel(self.address, address, min(num_threads, num_items), 0)


def stay_alone() -> None:
    """Keep torch's operators, and these loops, on the calling thread, for as long as it lives.

    For threads that compute beside the one that serves. OpenMP gives each thread that computes a team of its own, and
    as soon as the teams' threads outnumber the processors, no team's threads wait awake for the next operator: each
    operator then costs the time to wake them, some 20 microseconds where it was 3.
    """
    torch.get_num_threads()  # torch gives a thread its number when it first asks for it
    if _openmp_path() is not None:
        _openmp().omp_set_num_threads(1)


@functools.cache
def team_size_address() -> int:
    """Where the function lies that tells how many threads the team has that runs the caller: `int f()`."""
    return _address(_openmp().omp_get_num_threads)


@functools.cache
def yield_address() -> int:
    """Where the system's `int sched_yield()` lies: other threads may have the caller's processor."""
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def has_team() -> bool:
    """Say whether loops can enter torch's team: torch was built with GNU OpenMP, and numba is installed."""
    return _openmp_path() is not None and _has_numba()


@functools.cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401 - asked once, where a loop is first wanted: it takes a while to import
    except ImportError:
        return False
    return True


@functools.cache
def _openmp_path() -> Path | None:
    """The OpenMP library in torch's wheel, the one that its operators are linked to."""
    folders = [Path(torch.__file__).parent / "lib", Path(torch.__file__).parent.parent / "torch.libs"]
    found = [path for folder in folders for path in sorted(folder.glob("libgomp*"))]
    return found[0] if found else None


@functools.cache
def _openmp() -> ctypes.CDLL:
    path = _openmp_path()
    assert path is not None
    library = ctypes.CDLL(str(path))
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    library.omp_set_num_threads.argtypes = [ctypes.c_int]
    library.omp_set_num_threads.restype = None
    return library
