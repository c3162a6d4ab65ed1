"""How many threads torch computes with, one per physical core that this process may use; and who gives way to them."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch

from loramux_kernels.team import stay_alone

BESIDE = 10  # the nice value, 0 to 19, of a thread that gets what others leave, and a little more
CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def use_physical_cores() -> None:
    """Lower torch's number of threads to the cores there are; never raise it, so that OMP_NUM_THREADS can lower it.

    torch knows neither the CPU quota of a container nor, everywhere, which processors are two halves of one core; more
    threads than cores wait for each other at every operation.
    """
    torch.set_num_threads(min(torch.get_num_threads(), num_usable_cores()))


def compute_beside() -> None:
    """Have the calling thread compute alone (see `team.stay_alone`), and give way to the engine's threads.

    Each loop of a step ends when all threads are done with it: one that has lost its processor to somebody else holds
    up the others for as long, several times in a step. Only Linux has priorities of single threads.
    """
    stay_alone()
    if sys.platform == "linux":
        thread = threading.get_native_id()
        lowered = max(BESIDE, os.getpriority(os.PRIO_PROCESS, thread))  # to raise it may be forbidden
        with suppress(OSError):  # a sandbox may forbid that too
            os.setpriority(os.PRIO_PROCESS, thread, lowered)


def num_usable_cores(topology: Path = CPU_TOPOLOGY, cgroup: Path = CGROUP) -> int:
    """Count the physical cores that this process may run on, at most as many as its CPU quota pays for, at least 1."""
    num_cores = _num_physical(_usable_processors(), topology)
    quota = _cpu_quota(cgroup)
    return num_cores if quota is None else max(1, min(num_cores, math.ceil(quota)))


def _usable_processors() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _num_physical(processors: Collection[int], topology: Path) -> int:
    """Count the groups of processors that share a core; a processor whose group is unknown is one of its own."""
    siblings = (topology / f"cpu{number}" / "topology" / "thread_siblings_list" for number in processors)
    return len({_read(path) or str(path) for path in siblings})


def _cpu_quota(cgroup: Path) -> float | None:
    """How many processors' time the control group may use, by version 2 or version 1; None when there is no limit."""
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us")
        period = _read(cgroup / "cpu" / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:  # "max", -1, or no control group
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
