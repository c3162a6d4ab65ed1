"""Segments refuse what the ops could not read."""

from __future__ import annotations

import pytest
import torch

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


def test_work_cuts_segments_into_pieces_of_at_most_a_block() -> None:
    segments = Segments((5, 2), (1, 80), (70, 1), 90)
    work = segments.work(32, torch.device("cpu"))
    assert work.tolist() == [[5, 1, 32], [5, 33, 32], [5, 65, 6], [2, 80, 1]]
    assert work.dtype == torch.int32
    assert segments.work(32, torch.device("cpu")) is work


def test_a_batch_of_base_rows_has_no_work() -> None:
    assert Segments((), (), (), 8).work(32, torch.device("cpu")).shape == (0, 3)
