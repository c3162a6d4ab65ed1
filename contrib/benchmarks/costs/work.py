"""Kernel and Step: what launches read, write and multiply, and how long they take at least."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from costs.hardware import Hardware


def blocks(number: int, size: int) -> int:
    """How many blocks of a size hold so many."""
    return -(-number // size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One launch.

    nbytes: read from and written to device memory, each byte once. cache_bytes: what programs read again from the L2
    cache, or add up there, beyond these. program_bytes: what the busiest program moves by itself. flops: two per
    product and sum, those of padded rows and ranks too. idle_programs: programs of the grid that find nothing to do;
    they cost nothing in this account.
    """

    nbytes: float
    flops: float = 0.0
    cache_bytes: float = 0.0
    program_bytes: float = 0.0
    idle_programs: int = 0

    def seconds(self, hardware: Hardware) -> float:
        """The slowest of memory, cache, one program and arithmetic, after the launch."""
        limits = (
            self.nbytes / hardware.memory_bandwidth,
            (self.nbytes + self.cache_bytes) / hardware.cache_bandwidth,
            self.program_bytes / (hardware.cache_bandwidth / hardware.num_processors),
            self.flops / hardware.peak_flops,
        )
        return hardware.launch_seconds + max(limits)


@dataclass(frozen=True, slots=True)
class Step:
    """The launches of one step, in any order: one runs at a time."""

    kernels: tuple[Kernel, ...]

    @classmethod
    def of(cls, kernels: Iterable[Kernel]) -> Step:
        return cls(tuple(kernels))

    def __add__(self, other: Step) -> Step:
        return Step(self.kernels + other.kernels)

    @property
    def num_launches(self) -> int:
        return len(self.kernels)

    @property
    def nbytes(self) -> float:
        return sum(kernel.nbytes for kernel in self.kernels)

    @property
    def flops(self) -> float:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def idle_programs(self) -> int:
        return sum(kernel.idle_programs for kernel in self.kernels)

    def seconds(self, hardware: Hardware) -> float:
        return sum(kernel.seconds(hardware) for kernel in self.kernels)
