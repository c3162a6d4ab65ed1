"""Whenever a process dies, the next one finds whole adapters only, nothing in staging, and the right sum.

A killed process loses nothing that the kernel has taken, so this is about the order of the steps; that each is on the
disk before the next one needs it is shown in test_disk_store.py.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.failpoints import FAILPOINTS
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_refs import named_refs
from store_cases import check_integrity
from store_writer import MAX_BYTES

WRITER = Path(__file__).parents[1] / "store_writer.py"
DEADLINE_SECONDS = 30
NUM_MOMENTS = 30
NUM_CAMPAIGN_MOMENTS = 400
LATEST_SECONDS = 0.2
LATEST_OPCODE = 100_000


@contextmanager
def writer(root: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(WRITER), str(root), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def reopen(root: Path) -> None:
    with DiskStore.open(root, max_bytes=MAX_BYTES, min_free_bytes=0) as store:
        check_integrity(store)
        assert store.nbytes <= MAX_BYTES


def kill_at_failpoint(root: Path, failpoint: str, times: int) -> None:
    (root / "tmp" / "left-by-a-dead-run").mkdir(parents=True, exist_ok=True)
    with writer(root, times, failpoint, times) as process:
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    reopen(root)


def kill_at_random_moments(root: Path, num_moments: int, seed: int) -> int:
    """Return how many of the kills left something behind in staging.

    Moments of the clock fall into system calls, moments of the interpreter between any two of them.
    """
    chooser = random.Random(seed)
    num_torn = 0
    for number in range(num_moments):
        moment = ("opcode", chooser.randint(1, LATEST_OPCODE)) if number % 3 else ()
        with writer(root, seed + number, *moment) as process:
            if not moment:
                time.sleep(chooser.uniform(0, LATEST_SECONDS))
                process.kill()
            assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        num_torn += any((root / "tmp").glob("*"))
        reopen(root)
    return num_torn


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_process_may_die_at_every_step(tmp_path: Path, failpoint: str) -> None:
    kill_at_failpoint(tmp_path, failpoint, times=1)


def test_what_was_finished_before_it_died_is_there(tmp_path: Path) -> None:
    kill_at_failpoint(tmp_path, "refs_synced", times=1)

    with DiskStore.open(tmp_path, min_free_bytes=0) as store:
        digests = [named.ref.digest for named in named_refs(StoreLayout(tmp_path))]
        assert digests
        assert [digest for digest in digests if store.hold(digest) is None] == []


def test_a_process_may_die_at_any_moment(tmp_path: Path) -> None:
    assert kill_at_random_moments(tmp_path, NUM_MOMENTS, seed=1) > 0


@pytest.mark.campaign
def test_a_process_may_die_at_every_step_again_and_again(tmp_path: Path) -> None:
    for times in (1, 2, 3, 5, 8):
        for failpoint in FAILPOINTS:
            num_times = 1 if failpoint == "leftover_removed" else times  # that one is passed in opening only
            kill_at_failpoint(tmp_path / f"{failpoint}-{times}", failpoint, num_times)


@pytest.mark.campaign
def test_a_process_may_die_at_any_of_many_moments(tmp_path: Path) -> None:
    num_torn = kill_at_random_moments(tmp_path, NUM_CAMPAIGN_MOMENTS, seed=1000)

    sys.stdout.write(f"\n{NUM_CAMPAIGN_MOMENTS} kills, {num_torn} of them with something left in staging\n")
    assert num_torn > NUM_CAMPAIGN_MOMENTS // 4
