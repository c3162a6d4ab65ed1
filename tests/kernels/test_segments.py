"""Segments refuse what the ops could not read; a buffer of them changes its content alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_cases import make_batch
from loramux_kernels import Backend, SegmentBuffer, Segments, lora_linear
from loramux_kernels.segments import NUM_LAUNCH_COUNTERS, PIECE_ROWS

CPU = torch.device("cpu")


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


def test_work_cuts_segments_into_pieces_of_at_most_a_tiles_rows() -> None:
    segments = Segments((5, 2), (1, 80), (PIECE_ROWS * 2 + 6, 1), 90)
    work = segments.work(CPU)
    assert work.tolist() == [
        [5, 1, PIECE_ROWS],
        [5, 1 + PIECE_ROWS, PIECE_ROWS],
        [5, 1 + 2 * PIECE_ROWS, 6],
        [2, 80, 1],
    ]
    assert work.dtype == torch.int32
    assert segments.work(CPU) is work


def test_a_batch_of_base_rows_has_no_work() -> None:
    assert Segments((), (), (), 8).work(CPU).shape == (0, 3)


def test_counters_are_clear_and_lie_alike_whatever_the_batch() -> None:
    for num_pieces in range(1, 6):
        segments = Segments(tuple(range(num_pieces)), tuple(range(num_pieces)), (1,) * num_pieces, 8)
        counters = segments.counters(CPU)
        assert counters.tolist() == [0] * (NUM_LAUNCH_COUNTERS + num_pieces)
        assert counters.dtype == torch.int32
        assert (counters.data_ptr() - segments.work(CPU).data_ptr()) % 16 == 0, "of which compiled kernels take note"
        assert segments.counters(CPU) is counters
    buffer = SegmentBuffer(40, 4, CPU)
    counters = buffer.counters(CPU)
    assert counters.tolist() == [0] * (NUM_LAUNCH_COUNTERS + buffer.capacity)
    buffer.fill(Segments((0,), (2,), (1,), 5))
    assert buffer.counters(CPU) is counters


def test_a_buffer_keeps_its_memory_and_size_whatever_fills_it() -> None:
    buffer = SegmentBuffer(40, 4, CPU)
    work, address = buffer.work(CPU), buffer.work(CPU).data_ptr()
    assert work.shape == (buffer.capacity, 3) == (4 + 40 // PIECE_ROWS, 3)
    for segments in (Segments((3, 1), (0, 30), (20, 2), 40), Segments((0,), (2,), (1,), 5), None):
        buffer.fill(segments)
        want = [] if segments is None else segments.work(CPU).tolist()
        assert buffer.work(CPU) is work
        assert work.data_ptr() == address
        assert work.tolist() == want + [[0, 0, 0]] * (buffer.capacity - len(want))
        expected = Segments((), (), (), 40) if segments is None else segments
        assert (buffer.slots, buffer.starts, buffer.lengths) == (expected.slots, expected.starts, expected.lengths)
        assert buffer.max_slot == expected.max_slot
        assert buffer.num_rows == 40, "the rows of the launch, not of the batch"


@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 100])
@pytest.mark.parametrize("num_slots", [1, 2, 7])
def test_a_buffer_has_room_for_the_batch_with_most_pieces(num_rows: int, num_slots: int) -> None:
    """One segment per slot, all but one of them a row long, or all one row beyond a whole piece."""
    buffer = SegmentBuffer(num_rows, num_slots, CPU)
    most = min(num_slots, num_rows)
    for lengths in ([1] * (most - 1) + [num_rows - most + 1], _one_row_too_long(num_rows, num_slots)):
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        buffer.fill(Segments(tuple(range(len(lengths))), tuple(starts), tuple(lengths), num_rows))


def _one_row_too_long(num_rows: int, num_slots: int) -> list[int]:
    length = min(num_rows, PIECE_ROWS * (num_rows // num_slots // PIECE_ROWS) + 1)
    return [length] * min(num_slots, num_rows // length)


def test_what_a_buffer_has_no_room_for_is_refused() -> None:
    buffer = SegmentBuffer(8, 2, CPU)
    with pytest.raises(ValueError, match="8 rows and 2 slots cannot take 9 rows"):
        buffer.fill(Segments((), (), (), 9))
    with pytest.raises(ValueError, match="slot 2"):
        buffer.fill(Segments((2,), (0,), (1,), 8))
    with pytest.raises(ValueError, match="3 pieces of segments, the buffer has room for 2"):
        buffer.fill(Segments((0, 1, 0), (0, 1, 2), (1, 1, 1), 8))
    with pytest.raises(ValueError, match="segments are on cpu, the rows on meta"):
        buffer.work(torch.device("meta"))


def test_the_ops_of_a_cpu_take_a_buffer_in_the_place_of_segments(backend: Backend) -> None:
    batch = make_batch("zipf", 63, (8, 4, 17), (72, 136))
    buffer = SegmentBuffer(63, 3, CPU)
    buffer.fill(batch.segments)
    want = batch.y.clone()
    lora_linear(batch.x, batch.weights, batch.segments, want)
    lora_linear(batch.x, batch.weights, buffer, batch.y)
    assert torch.equal(batch.y, want)
