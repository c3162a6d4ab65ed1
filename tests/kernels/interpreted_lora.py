"""The Triton kernels against the float64 truth, run by Triton's interpreter on CPU.

Not collected by name: test_lora_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1 set before
triton is imported. No bfloat16 x: under the interpreter a bfloat16 tl.dot is silently wrong.
"""

from __future__ import annotations

import os

import pytest
import torch

from lora_cases import (
    MIXES,
    RANKS,
    ROWS,
    Batch,
    assert_matches,
    make_batch,
    true_expand,
    true_shrink,
    untouched_rows,
    written_columns,
)
from loramux_kernels import Segments, lora_embedding, lora_expand, lora_linear, lora_shrink, select_backend

MIXED_RANKS = (8, 0, 1, 64, 17)


@pytest.fixture(autouse=True)
def _triton_by_name() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    select_backend("triton")


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("ranks", [*((rank,) * 3 for rank in RANKS), MIXED_RANKS], ids=str)
def test_shrink_and_expand_equal_the_truth(ranks: tuple[int, ...], num_rows: int, mix: str) -> None:
    """The intermediate starts as NaN, and only what is owed is written."""
    batch = make_batch(mix, num_rows, ranks, (72, 136))
    want = true_shrink(batch)
    shrunk = torch.full(want.shape, float("nan"))
    lora_shrink(batch.x, batch.weights, batch.segments, shrunk)
    columns = written_columns(batch)
    assert_matches("shrunk", shrunk[columns], want[columns], torch.float32)
    assert shrunk[~columns].isnan().all()
    want = true_expand(want, batch)
    lora_expand(shrunk, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)


@pytest.mark.parametrize("features", [(64, 64), (1000, 129), (130, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_odd_widths_and_half_precision_hold_the_tolerance(dtype: torch.dtype, features: tuple[int, int]) -> None:
    batch = make_batch("zipf", 63, MIXED_RANKS, features, dtype)
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, dtype)


@pytest.mark.parametrize("mix", MIXES)
def test_rows_without_an_adapter_keep_their_bits(mix: str) -> None:
    batch = make_batch(mix, 63, MIXED_RANKS, (72, 136))
    rows = untouched_rows(batch)
    batch.y[rows, 0], batch.y[rows, 1] = -0.0, float("nan")
    batch.x[rows] = float("inf")
    before = batch.y[rows].view(torch.int32).clone()
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert torch.equal(batch.y[rows].view(torch.int32), before)
    assert not batch.y[~rows].isnan().any()


def test_nothing_outside_strided_rows_is_read_or_written() -> None:
    batch = make_batch("zipf", 63, (8, 4, 17), (72, 136))
    want = true_expand(true_shrink(batch), batch)
    wide_x, wide_y = torch.full((63, 100), float("nan")), torch.full((63, 300), float("nan"))
    wide_x[:, 20:92], wide_y[:, 50:186] = batch.x, batch.y
    lora_linear(wide_x[:, 20:92], batch.weights, batch.segments, wide_y[:, 50:186])
    assert_matches("y", wide_y[:, 50:186], want, torch.float32)
    assert wide_y[:, :50].isnan().all()
    assert wide_y[:, 186:].isnan().all()


def test_a_row_alone_has_the_bits_it_has_in_a_batch() -> None:
    batch = make_batch("identical", 100, (17,), (136, 136))
    alone = batch.y[40:41].clone()
    lora_linear(batch.x[40:41], batch.weights, Segments((0,), (0,), (1,), 1), alone)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert torch.equal(batch.y[40:41], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_embedding_adds_the_column_of_each_token(dtype: torch.dtype) -> None:
    batch = make_batch("zipf", 63, MIXED_RANKS, (300, 80), dtype)
    token_ids = torch.arange(63) * 4 % 300
    one_hot = torch.nn.functional.one_hot(token_ids, 300).to(dtype)
    shrunk = true_shrink(Batch(one_hot, batch.y, batch.weights, batch.segments))
    want = true_expand(shrunk, batch, 24.0)
    lora_embedding(token_ids, batch.weights, batch.segments, batch.y, 24.0)
    assert_matches("y", batch.y, want, dtype)


def test_a_slot_set_again_is_seen_through_the_same_table() -> None:
    batch = make_batch("distinct", 6, (8, 8, 8), (72, 136))
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    table = batch.weights.table()
    batch.weights.set(1, torch.ones(17, 72), torch.ones(136, 17))
    batch.weights.clear(2)
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)
    assert batch.weights.table() is table


def test_rows_of_scattered_elements_are_refused() -> None:
    batch = make_batch("identical", 63, (8,), (63, 63))
    with pytest.raises(ValueError, match="elements are adjacent"):
        lora_linear(batch.x.t(), batch.weights, batch.segments, batch.y)
