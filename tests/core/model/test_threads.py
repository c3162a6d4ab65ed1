"""Torch computes with the physical cores that this process may use, and with no more."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from loramux.model import threads
from loramux.model.threads import BESIDE, compute_beside, num_usable_cores, use_physical_cores


def make_topology(root: Path, siblings: dict[int, str]) -> Path:
    for number, group in siblings.items():
        folder = root / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{group}\n")
    return root


@pytest.fixture
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_usable_processors", lambda: (0, 1, 4, 5))


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("siblings", "num_cores"),
    [
        ({0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}, 2),  # two cores of two processors each
        ({0: "0", 1: "1", 4: "4", 5: "5"}, 4),
        ({}, 4),  # nothing is known
    ],
)
def test_processors_of_one_core_count_once(tmp_path: Path, siblings: dict[int, str], num_cores: int) -> None:
    assert num_usable_cores(make_topology(tmp_path, siblings), tmp_path / "none") == num_cores


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("limit", "num_cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("800000 100000", 4), ("max 100000", 4), ("", 4)],
)
def test_a_container_gets_no_more_threads_than_its_quota_pays_for(tmp_path: Path, limit: str, num_cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert num_usable_cores(tmp_path / "none", tmp_path) == num_cores


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(("quota", "num_cores"), [("200000", 2), ("-1", 4)])
def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path, quota: str, num_cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert num_usable_cores(tmp_path / "none", tmp_path) == num_cores


def test_the_number_of_threads_is_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "num_usable_cores", lambda: 2)
        use_physical_cores()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(threads, "num_usable_cores", lambda: 8)
        use_physical_cores()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of single threads")
@pytest.mark.parametrize("before", [0, BESIDE + 5])
def test_a_thread_that_computes_beside_the_engine_gives_way_and_the_others_do_not(before: int) -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def begin() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before)
        compute_beside()

    own = nice()
    with ThreadPoolExecutor(1, initializer=begin) as pool:
        assert pool.submit(nice).result() == max(before, BESIDE)
    assert nice() == own
