"""The Triton kernels of LoRA against the float64 truth, run by Triton's interpreter on CPU.

Not collected by name: test_lora_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1 set before
triton is imported. No bfloat16 x: under the interpreter a bfloat16 tl.dot is silently wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from launches import Launches
from lora_cases import (
    ALL_CASES,
    MIXES,
    Batch,
    Case,
    assert_matches,
    covering_sample,
    make_batch,
    slot_of_rows,
    true_expand,
    true_shrink,
    untouched_rows,
    written_columns,
)
from loramux_kernels import (
    SegmentBuffer,
    Segments,
    SlotWeights,
    lora_embedding,
    lora_expand,
    lora_group,
    lora_linear,
    lora_shrink,
    lora_tiles,
    lora_triton,
    select_backend,
)

MIXED_RANKS = (8, 0, 1, 64, 17)
HIGH_RANKS = (8, 0, 1, 128, 17)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _triton_by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr(lora_tiles, "NUM_PROGRAMS", 8)  # the interpreter runs one after the other
    monkeypatch.setitem(lora_triton.COUNTING, "SUMS", 2)
    select_backend("triton")
    yield
    select_backend(None)


@pytest.mark.parametrize("case", covering_sample(), ids=str)
def test_every_op_equals_the_truth(case: Case) -> None:
    check_ops(case)


@pytest.mark.campaign
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_every_op_equals_the_truth_everywhere(case: Case) -> None:
    check_ops(case)


def check_ops(case: Case) -> None:
    """What is owed is right, and what is not owed is still NaN."""
    batch = make_batch(case.mix, case.num_rows, case.ranks, case.features, case.dtype)
    want = true_shrink(batch)
    shrunk = torch.full(want.shape, float("nan"))
    lora_shrink(batch.x, batch.weights, batch.segments, shrunk)
    columns = written_columns(batch)
    assert_matches("shrunk", shrunk[columns], want[columns], torch.float32)
    assert shrunk[~columns].isnan().all()

    want = true_expand(want, batch)
    untouched = untouched_rows(batch)
    y = with_margins(batch, untouched)
    lora_expand(shrunk, batch.weights, batch.segments, y[:, 8:-8])
    assert_owed("expanded", y, want, untouched, case.dtype)

    y = with_margins(batch, untouched)
    lora_group(batch.x, ((batch.weights, 8),), batch.segments, y)
    assert_owed("linear", y, want, untouched, case.dtype)

    token_ids = (torch.arange(case.num_rows) * 7 + case.rank) % case.hidden
    one_hot = torch.nn.functional.one_hot(token_ids, case.hidden).to(case.dtype)
    of_tokens = Batch(one_hot, batch.y, batch.weights, batch.segments)
    want = true_expand(true_shrink(of_tokens), batch, 3.0)
    y = with_margins(batch, untouched)
    lora_embedding(token_ids, batch.weights, batch.segments, y[:, 8:-8], 3.0)
    assert_owed("embedding", y, want, untouched, case.dtype)


def with_margins(batch: Batch, untouched: torch.Tensor) -> torch.Tensor:
    """y between columns of NaN, its rows that no op may touch NaN too."""
    y = torch.full((batch.y.shape[0], batch.y.shape[1] + 16), float("nan"), dtype=batch.y.dtype)
    y[:, 8:-8] = batch.y
    y[untouched] = float("nan")
    return y


def assert_owed(name: str, y: torch.Tensor, want: torch.Tensor, untouched: torch.Tensor, dtype: torch.dtype) -> None:
    assert_matches(name, y[~untouched, 8:-8], want[~untouched], dtype)
    assert y[untouched].isnan().all()
    assert y[:, :8].isnan().all()
    assert y[:, -8:].isnan().all()


@pytest.mark.parametrize("ranks", [MIXED_RANKS, HIGH_RANKS], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_a_group_adds_every_members_delta_to_its_own_columns(mix: str, ranks: tuple[int, ...]) -> None:
    """Members of other widths and ranks; columns of no member keep their bits."""
    first, second, third = (
        make_batch(mix, 63, member_ranks, (136, out))
        for member_ranks, out in ((ranks, 300), ((4, 8, 0, 17, 8), 24), (ranks[::-1], 129))
    )
    y = torch.cat([first.y, second.y, torch.full((63, 8), float("nan")), third.y], dim=1)
    members = ((second.weights, 300), (first.weights, 0), (third.weights, 332))
    lora_group(first.x, members, first.segments, y)
    for name, batch, start in (("first", first, 0), ("second", second, 300), ("third", third, 332)):
        same_x = Batch(first.x, batch.y, batch.weights, first.segments)
        want = true_expand(true_shrink(same_x), same_x)
        assert_matches(name, y[:, start : start + want.shape[1]], want, torch.float32)
    assert y[:, 324:332].isnan().all()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("ranks", [MIXED_RANKS, HIGH_RANKS], ids=str)
def test_a_row_has_the_same_bits_alone_in_a_decode_and_in_a_prefill(ranks: tuple[int, ...], dtype: torch.dtype) -> None:
    """Alone, one row of each adapter, and amid long segments, wherever its piece begins."""
    batch = make_batch("skewed", 100, ranks, (600, 200), dtype)  # three splits
    y = batch.y.clone()
    lora_linear(batch.x, batch.weights, batch.segments, y)
    slots = slot_of_rows(batch.segments)
    chosen = [row for row, slot in enumerate(slots) if slot is not None][::13]
    for row in chosen:
        alone = batch.y[row : row + 1].clone()
        lora_linear(batch.x[row : row + 1], batch.weights, Segments((slots[row],), (0,), (1,), 1), alone)
        assert torch.equal(alone[0], y[row])

    decode = batch.y[chosen].clone()
    starts = tuple(range(len(chosen)))
    segments = Segments(tuple(slots[row] for row in chosen), starts, (1,) * len(chosen), len(chosen))
    lora_linear(batch.x[chosen], batch.weights, segments, decode)
    assert torch.equal(decode, y[chosen])


@pytest.mark.parametrize("ranks", [MIXED_RANKS, HIGH_RANKS], ids=str)
def test_how_columns_and_splits_are_spread_over_programs_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]
) -> None:
    batch = make_batch("zipf", 63, ranks, (600, 300))
    results = []
    for num_programs in (1, 8, 1 << 20):
        monkeypatch.setattr(lora_tiles, "NUM_PROGRAMS", num_programs)
        results.append(batch.y.clone())
        lora_linear(batch.x, batch.weights, batch.segments, results[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("num_programs", [1, 1 << 20], ids=["whole", "split"])
def test_launches_one_after_another_find_the_counters_clear(monkeypatch: pytest.MonkeyPatch, num_programs: int) -> None:
    """Over one buffer, as the layers of a step and the replays of a graph: pieces without rows, slots without a pair.

    Whatever the memory between the halves held, the same batch gives the same bits.
    """
    monkeypatch.setattr(lora_tiles, "NUM_PROGRAMS", num_programs)
    batch = make_batch("distinct", 12, MIXED_RANKS, (600, 40))
    empty = SlotWeights(5, 600, 40, torch.float32, "cpu", max_rank=64)
    buffer, seen = SegmentBuffer(12, 5, CPU), []
    memory = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **kinds: memory(*shape, **kinds).fill_(float("nan")))
    for segments in (batch.segments, None, Segments((1,), (2,), (3,), 12), batch.segments):
        buffer.fill(segments)
        for weights in (batch.weights, empty, batch.weights):
            y = batch.y.clone()
            lora_linear(batch.x, weights, buffer, y)
            assert not buffer.counters(CPU).any()
            if weights is batch.weights and segments is batch.segments:
                seen.append(y)
    assert_matches("y", seen[0], true_expand(true_shrink(batch), batch), torch.float32)
    assert all(torch.equal(y, seen[0]) for y in seen)


def test_every_sum_between_the_halves_has_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(run=False)
    launches.record(lora_triton, monkeypatch)
    batch = make_batch("distinct", 6, (8, 17), (600, 136))
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert lora_tiles.splits(600, 2) == (256, 256)
    (launch,) = launches.seen
    assert launch.grid == (2 * 3 + 2 * lora_tiles.spans((136,), 2)[1],)  # two pieces, each of three splits
    assert launch.arguments[2][1] == (3, 2, 16, 17)


@pytest.mark.parametrize(("in_features", "split"), [(64, 256), (4096, 256), (8192, 256), (8193, 512), (14336, 512)])
def test_a_split_depends_on_the_inputs_alone(in_features: int, split: int) -> None:
    several = [lora_tiles.splits(in_features, number) for number in (1, 2, 7, 1000)]
    assert {one[0] for one in several} == {split}
    assert {one[1] for one in several} == {split, max(split, in_features)}


@pytest.mark.parametrize("ranks", [MIXED_RANKS, HIGH_RANKS], ids=str)
def test_a_launch_depends_neither_on_the_adapters_nor_on_the_spread_of_rows(
    monkeypatch: pytest.MonkeyPatch, ranks: tuple[int, ...]
) -> None:
    """What a graph captured once: kernels, grids, constants, addresses. Every batch and placement goes through it."""
    batch = make_batch("zipf", 63, ranks, (72, 136))
    buffer = SegmentBuffer(63, 5, CPU)
    sums = torch.full((1, buffer.capacity, 16, max(ranks)), float("nan"))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: sums)  # a graph's own pool gives it one address
    y, graphs = torch.empty_like(batch.y), []
    for mix, num_rows in (("none", 63), ("identical", 63), ("skewed", 63), ("distinct", 10), ("zipf", 63)):
        segments = make_batch(mix, num_rows, ranks, (72, 136)).segments
        if mix == "skewed":
            batch.weights.set(2, torch.ones(16, 72), torch.ones(16, 136).t())
            batch.weights.clear(3)  # the highest rank present falls
            batch.weights.clear(4)
        buffer.fill(segments)
        launches = Launches()
        with monkeypatch.context() as patch:
            launches.record(lora_triton, patch)
            y.copy_(batch.y)
            lora_linear(batch.x, batch.weights, buffer, y)
        graphs.append(launches.seen)
        inputs = Batch(batch.x, batch.y, batch.weights, segments_of(segments, 63))
        assert_matches(mix, y, true_expand(true_shrink(inputs), inputs), torch.float32)
    assert [len(graph) for graph in graphs] == [1] * len(graphs)
    assert all(graph == graphs[0] for graph in graphs)


def segments_of(segments: Segments, num_rows: int) -> Segments:
    """The same in a batch of more rows."""
    return Segments(segments.slots, segments.starts, segments.lengths, num_rows)


def test_a_grid_is_exactly_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a graph: as many programs as there are pieces of rows, times spans of columns, and none for base rows."""
    launches = Launches()
    launches.record(lora_triton, monkeypatch)
    batch = make_batch("identical", 100, (8,), (72, 300))
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    columns, num_spans = lora_tiles.spans((300,), 7)
    assert [launch.grid for launch in launches.seen] == [(7 * (1 + num_spans),)]  # 98 rows in pieces of 16
    assert num_spans == -(-300 // columns)
    lora_linear(batch.x, batch.weights, Segments((), (), (), 100), batch.y)
    assert len(launches.seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_embedding_adds_the_column_of_each_token(dtype: torch.dtype) -> None:
    """A product of a one-hot row is exact even where the interpreter's bfloat16 is not: it multiplies in float32."""
    batch = make_batch("zipf", 63, HIGH_RANKS, (300, 80), dtype)
    token_ids = (torch.arange(126) * 4 % 300)[::2]
    one_hot = torch.nn.functional.one_hot(token_ids, 300).to(dtype)
    shrunk = true_shrink(Batch(one_hot, batch.y, batch.weights, batch.segments))
    want = true_expand(shrunk, batch, 24.0)
    lora_embedding(token_ids, batch.weights, batch.segments, batch.y, 24.0)
    assert_matches("y", batch.y, want, dtype)


@pytest.mark.parametrize("token_id", [-1, 300])
def test_a_token_outside_the_vocabulary_adds_nothing(token_id: int) -> None:
    batch = make_batch("identical", 4, (8,), (300, 80))
    before = batch.y.clone()
    lora_embedding(torch.full((4,), token_id), batch.weights, batch.segments, batch.y)
    assert torch.equal(batch.y, before)


def test_a_slot_set_again_is_seen_through_the_same_table() -> None:
    batch = make_batch("distinct", 6, (8, 8, 17), (72, 136))
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    address = batch.weights.table().data_ptr()
    batch.weights.set(1, torch.ones(17, 72), torch.ones(17, 136).t())
    batch.weights.clear(2)
    want = true_expand(true_shrink(batch), batch)
    lora_linear(batch.x, batch.weights, batch.segments, batch.y)
    assert_matches("y", batch.y, want, torch.float32)
    assert batch.weights.table().data_ptr() == address


def test_rows_of_scattered_elements_are_refused() -> None:
    batch = make_batch("identical", 63, (8,), (63, 63))
    with pytest.raises(ValueError, match="elements are adjacent"):
        lora_linear(batch.x.t(), batch.weights, batch.segments, batch.y)


def test_members_of_unlike_slots_are_refused() -> None:
    batch = make_batch("identical", 4, (8,), (72, 136))
    other = SlotWeights(2, 72, 8, torch.float32, "cpu", max_rank=8)
    with pytest.raises(ValueError, match=r"same slots, got \[1, 2\]"):
        lora_group(batch.x, ((batch.weights, 0), (other, 128)), batch.segments, batch.y)
