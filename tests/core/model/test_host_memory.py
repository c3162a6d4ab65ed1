"""Memory that a step has freed is kept for the next one, where the C library can be told so."""

import ctypes
import mmap
import platform
import re
from pathlib import Path

import psutil
import pytest
import torch

from loramux.model.host_memory import HugePages, keep_freed_memory
from loramux_kernels.memory import ALIGNMENT, CHUNK_NBYTES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has ways of its own")
def test_the_c_library_takes_both_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    mallopt, taken = ctypes.CDLL(None).mallopt, []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> None:
            taken.append(mallopt(parameter, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    keep_freed_memory()
    assert taken == [1, 1]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()


def test_memory_given_out_is_zero_apart_and_on_lines_of_its_own() -> None:
    pages = HugePages()
    given = [pages.zeros((3, size), dtype) for size, dtype in ((5, torch.float32), (7, torch.int8), (1, torch.float16))]
    assert not any(tensor.any() for tensor in given)
    for index, tensor in enumerate(given):
        tensor.fill_(index + 1)
    assert [tensor.unique().tolist() for tensor in given] == [[1], [2], [3]]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in given)
    assert pages.zeros((0, 4), torch.float32).shape == (0, 4)


def test_memory_that_is_not_written_is_not_taken_and_more_than_a_chunk_can_be_had() -> None:
    before = psutil.Process().memory_info().rss
    large = HugePages().zeros((2, CHUNK_NBYTES), torch.uint8)
    large[:, -1] = 1
    assert psutil.Process().memory_info().rss - before < CHUNK_NBYTES // 8


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="another system has ways of its own")
def test_the_memory_is_private_and_marked_for_huge_pages() -> None:
    tensor = HugePages().zeros((4,), torch.float32)
    regions = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    bounds = ((region, *region.split(" ", 1)[0].split("-")) for region in regions if region)
    own = [region for region, start, stop in bounds if int(start, 16) <= tensor.data_ptr() < int(stop, 16)]
    assert " rw-p " in own[0]
    assert re.search(r"VmFlags:.* hg", own[0])
