"""Memory that a step has freed is kept for the next one, where the C library can be told so."""

import ctypes
import platform

import pytest

from loramux.model.host_memory import keep_freed_memory


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
