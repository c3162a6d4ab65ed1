from __future__ import annotations

import resource

import pytest

from loramux.errors import ConfigInvalid
from loramux.server.startup.open_files import SPARE_FILES, make_room_for, raise_limit


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits of this process, the newest last."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    return limits


def test_the_limit_is_raised_as_far_as_needed(limits: list[tuple[int, int]]) -> None:
    make_room_for(2000)

    assert limits[-1] == (2000 + SPARE_FILES, 4096)


def test_a_limit_that_is_high_enough_stays(limits: list[tuple[int, int]]) -> None:
    make_room_for(100)

    assert len(limits) == 1


def test_more_connections_than_files_are_refused_with_what_to_do(limits: list[tuple[int, int]]) -> None:
    with pytest.raises(
        ConfigInvalid, match=r"--max-connections 5000 .* may have 4096: .* or give --max-connections 3840"
    ):
        make_room_for(5000)


def test_a_limit_is_raised_as_far_as_it_goes(limits: list[tuple[int, int]]) -> None:
    assert raise_limit(5000) == 4096
    assert limits[-1] == (4096, 4096)


def test_no_hard_limit_is_high_enough(limits: list[tuple[int, int]]) -> None:
    limits.append((1024, resource.RLIM_INFINITY))

    make_room_for(500_000)

    assert limits[-1] == (500_000 + SPARE_FILES, resource.RLIM_INFINITY)
