"""Segments refuse what the ops could not read."""

from __future__ import annotations

import pytest

from loramux_kernels import Segments


def test_stops_and_the_highest_slot_follow_from_the_segments() -> None:
    segments = Segments((5, 2), (1, 4), (3, 1), 8)
    assert segments.stops == (4, 5)
    assert segments.max_slot == 5
    assert Segments((), (), (), 8).max_slot == -1


@pytest.mark.parametrize(
    ("slots", "starts", "lengths", "message"),
    [
        ((0,), (0, 1), (1, 1), "differ in number"),
        ((-1,), (0,), (1,), "slots must be 0 or more"),
        ((0,), (0,), (0,), "at least one row"),
        ((0, 1), (0, 1), (2, 1), "overlap or descend"),
        ((0, 1), (4, 0), (1, 1), "overlap or descend"),
        ((0,), (-1,), (1,), "leave the batch"),
        ((0,), (7,), (2,), "leave the batch of 8 rows"),
    ],
)
def test_broken_segments_are_refused(
    slots: tuple[int, ...], starts: tuple[int, ...], lengths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Segments(slots, starts, lengths, 8)
