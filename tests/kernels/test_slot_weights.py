"""Slots hold pairs that others own, and forget everything derived from them."""

from __future__ import annotations

import pytest
import torch

from loramux_kernels import Segments, SlotWeights, lora_linear


def make_weights() -> SlotWeights:
    return SlotWeights(3, 6, 10, torch.float32, "cpu")


def test_a_slot_holds_the_owners_memory_until_cleared() -> None:
    weights, a, b = make_weights(), torch.ones(2, 6), torch.ones(10, 2)
    weights.set(1, a, b)
    assert weights.a(1) is a
    assert weights.b(1) is b
    assert (weights.rank(0), weights.rank(1), weights.max_rank) == (0, 2, 2)
    weights.clear(1)
    assert weights.a(1) is None
    assert weights.b(1) is None
    assert weights.max_rank == 0


def test_no_pair_and_rank_zero_mean_the_same() -> None:
    weights = make_weights()
    weights.set(0, torch.ones(2, 6), torch.ones(10, 2))
    weights.set(0, torch.ones(0, 6), torch.ones(10, 0))
    assert weights.a(0) is None
    weights.set(0, None, None)
    assert weights.max_rank == 0


@pytest.mark.parametrize("num_calls", [1, 3])
def test_a_slot_set_again_serves_the_new_pair(num_calls: int) -> None:
    weights, segments = make_weights(), Segments((0, 1), (0, 1), (1, 1), 2)
    weights.set(0, torch.ones(2, 6), torch.ones(10, 2))
    weights.set(1, torch.ones(2, 6), torch.ones(10, 2))
    for _ in range(num_calls):
        lora_linear(torch.ones(2, 6), weights, segments, torch.zeros(2, 10))
    weights.set(1, torch.ones(1, 6), 3 * torch.ones(10, 1))
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
        (3, torch.ones(2, 6), torch.ones(10, 2), "slot 3 is not one of 0..2"),
        (0, torch.ones(2, 7), torch.ones(10, 2), r"A has shape \(2, 7\), expected \(2, 6\)"),
        (0, torch.ones(2, 6), torch.ones(10, 3), r"B has shape \(10, 3\), expected \(10, 2\)"),
        (0, torch.ones(2, 6).half(), torch.ones(10, 2), "float16"),
        (0, torch.ones(2, 6), torch.ones(10, 2, device="meta"), "on meta"),
        (0, torch.ones(6, 2).t(), torch.ones(10, 2), "not contiguous"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(slot: int, a: torch.Tensor, b: torch.Tensor | None, message: str) -> None:
    weights = make_weights()
    with pytest.raises(ValueError, match=message):
        weights.set(slot, a, b)
    assert weights.max_rank == 0


def test_the_table_follows_every_set_and_clear_in_place() -> None:
    weights, a, b = make_weights(), torch.ones(8, 6), torch.ones(10, 8)
    table = weights.table()
    weights.set(1, a, b)
    assert weights.table() is table
    assert table.tolist() == [[0, a.data_ptr(), 0], [0, b.data_ptr(), 0], [0, 8, 0]]
    weights.clear(1)
    assert weights.table().tolist() == [[0, 0, 0]] * 3


def test_a_pair_off_the_alignment_is_noticed() -> None:
    weights, memory = make_weights(), torch.zeros(13)
    weights.set(0, torch.ones(8, 6), torch.ones(10, 8))
    assert weights.has_aligned_pairs
    assert weights.has_even_ranks
    weights.set(1, memory[1:7].view(1, 6), torch.ones(10, 1))
    assert not weights.has_aligned_pairs
    assert not weights.has_even_ranks
    weights.clear(1)
    assert weights.has_aligned_pairs
    assert weights.has_even_ranks


def test_a_transposed_b_is_read_where_it_lies() -> None:
    weights, rows = make_weights(), torch.randn(2, 10)
    weights.set(1, torch.ones(2, 6), rows.t())
    assert weights.transposed(1)[1].data_ptr() == rows.data_ptr()
    weights.set(0, torch.ones(2, 6), rows.t().contiguous())
    assert torch.equal(weights.transposed(0)[1], rows)
    y = torch.zeros(2, 10)
    lora_linear(torch.ones(2, 6), weights, Segments((0, 1), (0, 1), (1, 1), 2), y)
    assert torch.equal(y[0], y[1])
