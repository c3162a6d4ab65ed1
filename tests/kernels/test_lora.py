"""The torch and numba forms of the LoRA ops against a float64 loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lora_cases import (
    MIXES,
    RANKS,
    ROWS,
    Batch,
    assert_matches,
    make_batch,
    slot_of_rows,
    true_expand,
    true_shrink,
    untouched_rows,
    written_columns,
)
from loramux_kernels import (
    Backend,
    Segments,
    SlotWeights,
    lora_embedding,
    lora_expand,
    lora_group,
    lora_linear,
    lora_shrink,
    select_backend,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIXED_RANKS = (8, 0, 1, 64, 17, 8, 8)


@pytest.fixture(params=["torch", "numba"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """What is selected by name refuses other dtypes; float32 tensors find numba by themselves."""
    select_backend("torch" if request.param == "torch" else None)
    yield request.param
    select_backend(None)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("ranks", [*((rank,) * 4 for rank in RANKS), MIXED_RANKS], ids=str)
def test_linear_adds_each_rows_own_delta(ranks: tuple[int, ...], num_rows: int, mix: str) -> None:
    batch = make_batch(mix, num_rows, ranks, (72, 104))
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("features", [(64, 576), (576, 64), (1000, 2049), (2049, 1000), (1, 1)], ids=str)
def test_any_width_and_rank_is_served(features: tuple[int, int], num_rows: int) -> None:
    """The last rows and columns are no whole tile, and long batches and high ranks are cut into pieces."""
    batch = make_batch("zipf", num_rows, (128, 1, 17, 256), features)
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)


@pytest.mark.parametrize("backend", ["numba"], indirect=True)  # torch's sums go by the shape of the batch
@pytest.mark.parametrize("num_neighbours", [1, 2, 3, 63, 200])
@pytest.mark.parametrize("features", [(72, 104), (576, 577)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_alone_has_the_bits_it_has_in_any_batch(
    features: tuple[int, int], num_neighbours: int, dtype: torch.dtype
) -> None:
    batch = make_batch("skewed", num_neighbours + 30, (17, 8, 64), features)
    for slot in range(3):
        a, b = batch.weights.a(slot), batch.weights.b(slot)
        assert a is not None
        assert b is not None
        batch.weights.set(slot, a.to(dtype), b.t().contiguous().to(dtype).t())
    before = batch.y.clone()
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    for row, slot in enumerate(slot_of_rows(batch.segments)):
        if slot is not None:
            alone = before[row : row + 1].clone()
            lora_linear(batch.x[row : row + 1], batch.weights, Segments((slot,), (0,), (1,), 1), alone)
            assert torch.equal(alone[0], batch.y[row])


@pytest.mark.parametrize("features", [(72, 104), (577, 70)], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_float32_rows_are_served_pairs_of_any_width_side_by_side(mix: str, features: tuple[int, int]) -> None:
    """What is 16-bit becomes float32 as it is read: the sums are those of the numbers that are there."""
    batch = make_batch(mix, 63, (17, 8, 64, 5, 33), features)
    for slot, dtype in ((0, torch.float16), (2, torch.bfloat16), (3, torch.bfloat16), (4, torch.float16)):
        a, b = batch.weights.a(slot), batch.weights.b(slot)
        assert a is not None
        assert b is not None
        batch.weights.set(slot, a.to(dtype), b.t().contiguous().to(dtype).t())
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)


@pytest.mark.parametrize("mix", MIXES)
def test_a_group_adds_every_members_delta_to_its_own_columns(mix: str) -> None:
    """Columns of no member, and the member that no adapter changes, keep their bits."""
    first, second = (
        make_batch(mix, 63, ranks, (72, out)) for ranks, out in ((MIXED_RANKS, 104), ((4, 8, 8, 4, 8, 4, 8), 24))
    )
    second = replace(second, x=first.x, segments=first.segments)
    y = torch.cat([first.y, second.y, torch.full((63, 8), float("nan"))], dim=1)
    unchanged = SlotWeights(7, 72, 8, torch.float32, "cpu", max_rank=8)
    lora_group(first.x, ((second.weights, 104), (unchanged, 128), (first.weights, 0)), first.segments, y)
    assert_matches("first", y[:, :104], true_expand(true_shrink(first), first), torch.float32)
    assert_matches("second", y[:, 104:128], true_expand(true_shrink(second), second), torch.float32)
    assert y[:, 128:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_every_op_holds_its_dtypes_tolerance(mix: str, dtype: torch.dtype) -> None:
    batch = make_batch(mix, 63, MIXED_RANKS, (1000, 80), dtype)
    want = true_shrink(batch)
    shrunk = torch.full((63, 64), float("nan"))
    lora_shrink(batch.x, batch.weights, batch.segments, shrunk)
    columns = written_columns(batch)
    assert_matches("shrunk", shrunk[columns], want[columns], torch.float32)
    assert shrunk[~columns].isnan().all()

    want = true_expand(want, batch)
    expanded = batch.y.clone()
    lora_expand(shrunk, batch.weights, batch.segments, expanded)
    assert_matches("expanded", expanded, want, dtype)

    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("linear", batch.y, want, dtype)


@pytest.mark.parametrize("mix", MIXES)
def test_rows_without_an_adapter_keep_their_bits(mix: str) -> None:
    batch = make_batch(mix, 63, MIXED_RANKS, (72, 104))
    rows = untouched_rows(batch)
    batch.y[rows, 0], batch.y[rows, 1] = -0.0, float("nan")  # what adding a zero would change, and what it would keep
    batch.x[rows] = float("inf")
    before = batch.y[rows].view(torch.int32).clone()
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert torch.equal(batch.y[rows].view(torch.int32), before)


def test_a_row_of_nan_stays_alone() -> None:
    batch = make_batch("distinct", 16, (8,) * 8, (72, 104))
    start = batch.segments.starts[2]
    batch.x[start] = float("nan")
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert batch.y.isnan().any(1).nonzero().flatten().tolist() == [start]


@pytest.mark.parametrize("scale", [1.0, 24.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_adds_the_column_of_each_token(dtype: torch.dtype, scale: float) -> None:
    batch = make_batch("zipf", 63, MIXED_RANKS, (300, 80), dtype)
    token_ids = torch.arange(63) * 4 % 300
    one_hot = torch.nn.functional.one_hot(token_ids, 300).to(dtype)
    shrunk = true_shrink(Batch(one_hot, batch.y, batch.weights, batch.segments))
    want = true_expand(shrunk, batch, scale)
    lora_embedding(token_ids, batch.weights, batch.segments, batch.y, scale)
    assert_matches("y", batch.y, want, dtype)


def test_ops_work_inside_inference_mode_and_on_strided_rows() -> None:
    batch = make_batch("zipf", 63, (8, 4, 8, 1), (72, 104))
    want = true_expand(true_shrink(batch), batch)
    wide = torch.full((63, 200), float("nan"))
    wide[:, 50:154] = batch.y
    with torch.inference_mode():
        lora_linear(batch.x, batch.weights, batch.segments, wide[:, 50:154])
    assert_matches("y", wide[:, 50:154], want, torch.float32)
    assert wide[:, :50].isnan().all()
    assert wide[:, 154:].isnan().all()


def test_shapes_that_do_not_fit_are_named() -> None:
    batch = make_batch("identical", 4, (8,), (72, 104))
    with pytest.raises(ValueError, match=r"shape \[4, 72\], got \[3, 72\]"):
        lora_linear(batch.x[:3], batch.weights, batch.segments, batch.y)
    with pytest.raises(ValueError, match=r"adapter weights torch\.float32"):
        lora_linear(batch.x.half(), batch.weights, batch.segments, batch.y)
    with pytest.raises(ValueError, match=r"expected y of 4 rows in torch\.float32, got \[5, 104\]"):
        lora_linear(batch.x, batch.weights, batch.segments, torch.empty(5, 104))
    with pytest.raises(ValueError, match="y has 103 columns, the module 104"):
        lora_linear(batch.x, batch.weights, batch.segments, batch.y[:, :103])
    with pytest.raises(ValueError, match="slot 3, the module has 1 slots"):
        lora_linear(batch.x, batch.weights, Segments((3,), (0,), (4,), 4), batch.y)
    with pytest.raises(ValueError, match="7 columns, the highest rank is 8"):
        lora_shrink(batch.x, batch.weights, batch.segments, torch.empty(4, 7))
    with pytest.raises(ValueError, match="token_ids must be int64"):
        lora_embedding(torch.zeros(4, dtype=torch.int32), batch.weights, batch.segments, batch.y)


def test_a_module_that_no_adapter_changes_costs_no_work() -> None:
    weights = SlotWeights(2, 72, 104, torch.float32, "cpu", max_rank=8)
    y = torch.ones(4, 104)
    lora_linear(torch.empty(0), weights, Segments((0,), (0,), (4,), 4), y)  # x is not even looked at
    assert torch.equal(y, torch.ones(4, 104))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_no_expand_begins_before_the_last_shrink() -> None:
    """One piece to shrink, which takes milliseconds, and then two to expand."""
    weights = SlotWeights(1, 100_000, 1024, torch.float32, "cpu", max_rank=8)
    weights.set(0, torch.ones(8, 100_000), torch.ones(8, 1024).t())
    x, y = torch.ones(64, 100_000), torch.zeros(64, 1024)
    lora_group(x, ((weights, 0),), Segments((0,), (0,), (64,), num_rows=64), y)
    assert torch.equal(y, torch.full((64, 1024), 800_000.0))


@pytest.mark.usefixtures("two_threads")
def test_two_threads_give_the_bits_of_one() -> None:
    batch = make_batch("distinct", 100, MIXED_RANKS, (576, 1000))
    alone = batch.y.clone()
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    torch.set_num_threads(1)
    lora_linear(batch.x, batch.weights, batch.segments, alone)
    assert torch.equal(batch.y, alone)
