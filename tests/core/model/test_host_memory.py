"""Memory that a step has freed is kept for the next one, where the C library can be told so."""

import ctypes
import mmap
import platform

import psutil
import pytest
import torch

from loramux.model.host_memory import HUGE_PAGE_NBYTES, _own_memory, gather_into_huge_pages, keep_freed_memory


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


MAPS = """\
55d0c0000000-55d0c0400000 r--p 00000000 08:01 131 /usr/bin/python3
55d0c1000000-55d0c1900000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000300000 rw-p 00000000 00:00 0
7f0000400000-7f0000401000 rw-p 00000000 00:00 0
7f0001000000-7f0001800000 rw-p 00000000 08:01 131 /some/file
7f0002000000-7f0002800000 rw-s 00000000 00:01 77 /dev/zero (deleted)
7ffd00000000-7ffd00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_only_the_heap_and_anonymous_memory_are_moved_in_whole_huge_pages() -> None:
    assert list(_own_memory(MAPS)) == [(0x55D0C1000000, 0x55D0C1800000), (0x7F0000000000, 0x7F0000200000)]


def test_moving_memory_changes_no_number_and_touches_nothing_unused() -> None:
    weights = torch.arange(3 * HUGE_PAGE_NBYTES, dtype=torch.int32)
    expected = int(weights.sum())
    reserved = mmap.mmap(-1, 64 * HUGE_PAGE_NBYTES)
    before = psutil.Process().memory_info().rss

    moved = gather_into_huge_pages()

    assert moved >= weights.nbytes - 2 * HUGE_PAGE_NBYTES
    assert int(weights.sum()) == expected
    assert psutil.Process().memory_info().rss - before < before // 4 + 32 * HUGE_PAGE_NBYTES
    reserved.close()
