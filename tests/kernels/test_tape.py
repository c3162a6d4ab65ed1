"""Tapes: loops run again at the same addresses, and what cannot be on one is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from loramux_kernels import (
    Segments,
    SlotWeights,
    add_rows,
    lora_group,
    pack_weight,
    packed_linear,
    rms_norm,
    select_backend,
    silu_mul,
)
from loramux_kernels.backend import use_numba
from loramux_kernels.recording import Arena, NotRecordable, is_recording
from loramux_kernels.tape import Tape, record

WIDTH, SLOTS = 96, 3

pytestmark = pytest.mark.skipif(not use_numba(torch.empty(0)), reason="the loops need numba and torch's GNU OpenMP")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"norm": torch.rand(WIDTH), "up": torch.randn(2 * WIDTH, WIDTH), "bias": torch.randn(2 * WIDTH)}


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 5, 700])
@torch.inference_mode()
def test_a_tape_computes_again_to_the_bit_what_lies_at_its_addresses(
    weights: dict[str, torch.Tensor], num_rows: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    packed = pack_weight(weights["up"])
    held = torch.randn(num_rows, WIDTH)

    def compute(rows: torch.Tensor) -> torch.Tensor:
        gated = silu_mul(packed_linear(rms_norm(rows, weights["norm"], 1e-6), packed, weights["bias"]))
        add_rows(gated, rows)
        return gated

    try:
        first = compute(held)
        arena = Arena()
        result, calls = record(lambda: compute(held), arena)
        assert torch.equal(result, first)
        tape = Tape(calls)
        assert len(tape) == 5, "norm, product, bias, gate, sum"
        for threads in (num_threads, 1, 2):
            torch.set_num_threads(threads)
            held.copy_(torch.randn(num_rows, WIDTH))
            tape.run()
            assert torch.equal(result, compute(held))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("num_threads", [1, 2])
@torch.inference_mode()
def test_a_tape_with_adapters_serves_any_of_them_on_any_rows_once_it_is_renewed(num_threads: int) -> None:
    torch.manual_seed(2)
    torch.set_num_threads(num_threads)
    widths = (64, 32)
    modules = [SlotWeights(SLOTS, WIDTH, width, torch.float32, "cpu", max_rank=16) for width in widths]
    members = tuple(zip(modules, (0, 64), strict=True))
    x, y = torch.randn(6, WIDTH), torch.zeros(6, sum(widths))

    def place(slot: int, *ranks: int) -> None:
        for module, rank in zip(modules, ranks, strict=True):
            module.set(slot, torch.randn(rank, WIDTH), torch.randn(rank, module.out_features).t())

    def compute(segments: Segments) -> torch.Tensor:
        lora_group(x, members, segments, y)
        return y[:]

    def expected(segments: Segments) -> torch.Tensor:
        fresh = torch.zeros_like(y)
        lora_group(x, members, segments, fresh)
        return fresh

    try:
        place(0, 8, 4)
        before = Segments((0,), (1,), (3,), 6)
        _result, calls = record(lambda: compute(before), Arena())
        tape = Tape(calls)
        place(1, 16, 0)
        place(2, 0, 3)
        for segments in (
            Segments((1,), (0,), (6,), 6),
            Segments((0, 1, 2), (0, 1, 4), (1, 3, 2), 6),
            Segments((2,), (5,), (1,), 6),
            before,
        ):
            tape.renew(segments)
            for _ in range(2):
                y.zero_()
                tape.run()
                assert torch.equal(y, expected(segments))
        modules[0].clear(0)
        modules[1].clear(0)
        tape.renew(Segments((0,), (1,), (3,), 6))
        tape.run()
        assert torch.equal(y, expected(before) + y)
    finally:
        torch.set_num_threads(1)


@torch.inference_mode()
def test_a_group_without_pairs_is_recorded_for_those_that_come() -> None:
    module = SlotWeights(1, WIDTH, 32, torch.float32, "cpu", max_rank=4)
    x, y = torch.randn(2, WIDTH), torch.zeros(2, 32)
    segments = Segments((0,), (0,), (2,), 2)

    def compute() -> torch.Tensor:
        lora_group(x, ((module, 0),), segments, y)
        return y[:]

    tape = Tape(record(compute, Arena())[1])
    tape.run()
    assert not y.any()

    module.set(0, a := torch.randn(4, WIDTH), b := torch.randn(4, 32).t())
    tape.renew(Segments((0,), (0,), (2,), 2))
    tape.run()
    torch.testing.assert_close(y, x @ a.t() @ b.t())


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda x: x + 1, "add"),
        (lambda x: x.add_(1), "add_"),
        (lambda x: x.t().reshape(-1), "reshape"),
        (lambda x: torch.zeros_like(x), "zeros_like"),
        (lambda x: x.new_empty(2), "new_empty"),
        (lambda x: torch.add(x, 1, out=x), "add"),
    ],
)
@torch.inference_mode()
def test_what_torch_computes_cannot_be_recorded(compute: Callable[[torch.Tensor], torch.Tensor], name: str) -> None:
    x = torch.ones(3, 4)
    with pytest.raises(NotRecordable, match=f"torch's {name}$"):
        record(lambda: compute(x), Arena())


@torch.inference_mode()
def test_views_are_of_what_they_view() -> None:
    x = torch.arange(12.0).view(3, 4)
    result, calls = record(lambda: x[1:].view(-1)[2:6].unflatten(0, (2, 2)).t(), Arena())
    assert torch.equal(result, torch.tensor([[6.0, 8.0], [7.0, 9.0]]))
    assert result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert calls == []


@torch.inference_mode()
def test_the_reference_cannot_be_recorded(weights: dict[str, torch.Tensor]) -> None:
    select_backend("torch")
    try:
        with pytest.raises(NotRecordable):
            record(lambda: rms_norm(torch.ones(2, WIDTH), weights["norm"], 1e-6), Arena())
    finally:
        select_backend(None)


def test_an_arena_does_not_grow_with_every_larger_number_of_rows() -> None:
    arena = Arena()
    addresses = set()
    for num_rows in range(1, 65):
        arena.rewind()
        for width in (40_000, 20_000):
            addresses.add(arena.empty((num_rows, width), torch.float32).data_ptr())
    assert max(addresses) - min(addresses) < 64 * 60_000 * 4


def test_tensors_larger_than_a_chunk_share_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramux_kernels.recording.CHUNK_NBYTES", 1 << 16)
    arena = Arena()
    for num_rows in range(1, 100):
        arena.rewind()
        arena.empty((num_rows, 5_000), torch.float32)
    assert sum(map(len, arena._chunks)) <= 2 * (1 << 21)


@torch.inference_mode()
def test_nothing_is_recorded_after_what_failed(weights: dict[str, torch.Tensor]) -> None:
    rows = torch.ones(2, WIDTH)

    def fail() -> torch.Tensor:
        rms_norm(rows, weights["norm"], 1e-6)
        raise KeyboardInterrupt

    arena = Arena()
    with pytest.raises(KeyboardInterrupt):
        record(fail, arena)

    assert not is_recording()
    first = arena.empty((1,), torch.float32)
    assert rms_norm(rows, weights["norm"], 1e-6).data_ptr() - first.data_ptr() not in range(1 << 16)


@torch.inference_mode()
def test_lora_that_torch_computes_cannot_be_recorded_even_where_no_slot_has_a_pair() -> None:
    module = SlotWeights(1, WIDTH, 32, torch.float32, "cpu", max_rank=4)
    apart = torch.randn(WIDTH, 2).t()
    y = torch.zeros(2, 32)

    def compute() -> torch.Tensor:
        lora_group(apart, ((module, 0),), Segments((0,), (0,), (2,), 2), y)
        return y[:]

    with pytest.raises(NotRecordable, match="LoRA"):
        record(compute, Arena())


def test_an_arena_gives_out_the_same_memory_after_a_rewind_and_none_twice_before() -> None:
    arena = Arena()
    shapes = [(3, 5), (1 << 19,), (7,), (1 << 18, 3), (0, 4)]
    first = [arena.empty(shape, torch.float32) for shape in shapes]
    for index, tensor in enumerate(first):
        tensor.fill_(index)
    assert [tuple(tensor.shape) for tensor in first] == shapes
    assert all((tensor == index).all() for index, tensor in enumerate(first))
    assert all(tensor.data_ptr() % 64 == first[0].data_ptr() % 64 for tensor in first)

    arena.rewind()

    again = [arena.empty(shape, torch.float32) for shape in shapes]
    assert [tensor.data_ptr() for tensor in again] == [tensor.data_ptr() for tensor in first]
