"""Slots hold pairs that others own, and forget everything derived from them."""

from __future__ import annotations

import pytest
import torch

from loramux_kernels import Segments, SlotTable, SlotWeights, lora_linear
from loramux_kernels.backend import ITEM_TYPES
from loramux_kernels.emitter_numba import ITEM_NBYTES


def make_weights() -> SlotWeights:
    return SlotWeights(3, 6, 10, torch.float32, "cpu", max_rank=8)


def test_a_slot_holds_the_owners_memory_until_cleared() -> None:
    weights, a, b = make_weights(), torch.ones(2, 6), torch.ones(2, 10).t()
    weights.set(1, a, b)
    assert weights.a(1) is a
    assert weights.b(1) is b
    assert (weights.rank(0), weights.rank(1), weights.highest_rank) == (0, 2, 2)
    weights.clear(1)
    assert weights.a(1) is None
    assert weights.b(1) is None
    assert weights.highest_rank == 0


def test_types_of_items_have_one_number_everywhere() -> None:
    assert [str(dtype).removeprefix("torch.") for dtype in ITEM_TYPES] == [*ITEM_NBYTES]
    assert [dtype.itemsize for dtype in ITEM_TYPES] == [*ITEM_NBYTES.values()]


def test_no_pair_and_rank_zero_mean_the_same() -> None:
    weights = make_weights()
    weights.set(0, torch.ones(2, 6), torch.ones(2, 10).t())
    weights.set(0, torch.ones(0, 6), torch.ones(0, 10).t())
    assert weights.a(0) is None
    weights.set(0, None, None)
    assert weights.highest_rank == 0


@pytest.mark.parametrize("num_calls", [1, 3])
def test_a_slot_set_again_serves_the_new_pair(num_calls: int) -> None:
    weights, segments = make_weights(), Segments((0, 1), (0, 1), (1, 1), 2)
    weights.set(0, torch.ones(2, 6), torch.ones(2, 10).t())
    weights.set(1, torch.ones(2, 6), torch.ones(2, 10).t())
    for _ in range(num_calls):
        lora_linear(torch.ones(2, 6), weights, segments, torch.zeros(2, 10))
    weights.set(1, torch.ones(1, 6), 3 * torch.ones(1, 10).t())
    y = torch.zeros(2, 10)
    lora_linear(torch.ones(2, 6), weights, segments, y)
    assert y[:, 0].tolist() == [12.0, 18.0]
    weights.clear(0)
    y = torch.zeros(2, 10)
    lora_linear(torch.ones(2, 6), weights, segments, y)
    assert y[:, 0].tolist() == [0.0, 18.0]


@pytest.mark.parametrize(
    ("slot", "a", "b", "message"),
    [
        (0, torch.ones(2, 6), None, "together"),
        (3, torch.ones(2, 6), torch.ones(2, 10).t(), "slot 3 is not one of 0..2"),
        (0, torch.ones(2, 7), torch.ones(2, 10).t(), r"A has shape \(2, 7\), expected \(2, 6\)"),
        (0, torch.ones(2, 6), torch.ones(3, 10).t(), r"B has shape \(10, 3\), expected \(10, 2\)"),
        (0, torch.ones(2, 6).half(), torch.ones(2, 10).t(), "float16"),
        (0, torch.ones(2, 6), torch.ones(2, 10, device="meta").t(), "on meta"),
        (0, torch.ones(6, 2).t(), torch.ones(2, 10).t(), "A must be contiguous"),
        (0, torch.ones(2, 6), torch.ones(10, 2), "B the transpose of a contiguous tensor"),
        (0, torch.ones(13)[1:].view(2, 6), torch.ones(2, 10).t(), "A begins at .*, no multiple of 16"),
        (0, torch.ones(9, 6), torch.ones(9, 10).t(), "rank 9 is beyond the module's highest, 8"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(slot: int, a: torch.Tensor, b: torch.Tensor | None, message: str) -> None:
    weights = make_weights()
    with pytest.raises(ValueError, match=message):
        weights.set(slot, a, b)
    assert weights.highest_rank == 0


def test_the_table_follows_every_set_and_clear_in_place() -> None:
    weights, a, b = make_weights(), torch.ones(8, 6), torch.ones(8, 10).t()
    address = weights.table().data_ptr()
    weights.set(1, a, b)
    assert weights.table().tolist() == [[0, a.data_ptr(), 0], [0, b.data_ptr(), 0], [0, 8, 0]]
    weights.clear(1)
    assert weights.table().tolist() == [[0, 0, 0]] * 3
    assert weights.table().data_ptr() == address


def test_modules_of_one_table_change_together_when_it_flips() -> None:
    table = SlotTable(2, 3, "cpu")
    first, second = (
        SlotWeights(3, 6, 10, torch.float32, "cpu", max_rank=8, table=table, module=index) for index in range(2)
    )
    a, b = torch.ones(4, 6), torch.ones(4, 10).t()
    first.set(0, a, b)
    second.set(2, a, b)
    assert not table.tensor.any(), "nothing reaches the device before the flip"
    table.flip()
    assert table.tensor.tolist() == [
        [[a.data_ptr(), 0, 0, 0], [b.data_ptr(), 0, 0, 0], [4, 0, 0, 0]],  # a fourth slot makes rows of 32 bytes
        [[0, 0, a.data_ptr(), 0], [0, 0, b.data_ptr(), 0], [0, 0, 4, 0]],
    ]
    table.flip()
    assert table.num_flips == 1, "nothing changed, nothing is copied"


def test_a_pair_whose_offsets_leave_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 512 and 64 x 4194304 features is too large"):
        SlotWeights(1, 64, 1 << 22, torch.float32, "cpu", max_rank=512)


def test_b_is_read_where_it_lies() -> None:
    weights, rows = make_weights(), torch.randn(2, 10)
    weights.set(1, torch.ones(2, 6), rows.t())
    assert weights.transposed(1)[1].data_ptr() == rows.data_ptr()
