"""The roofline's accounts are those that one counts by hand. Weights, rows and caches have 2 bytes a number."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from loramux_kernels import lora_tiles, segments

BENCHMARKS = Path(__file__).parents[2] / "contrib" / "benchmarks"


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, with its modules as attributes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("base_model", "batch", "hardware", "lora_scheme", "model_shape", "peers_scheme", "work"):
        importlib.import_module(f"costs.{name}")
    return importlib.import_module("costs")


def tiny(costs: ModuleType) -> object:
    """Groups of 8 inputs → (8, 4, 4), 8 → 8, 8 → (16, 16) and 16 → 8 outputs: 576 weights; a head of 80."""
    return costs.model_shape.ModelShape(
        name="tiny", hidden=8, intermediate=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=10
    )


def two_adapters(costs: ModuleType) -> object:
    """Two sequences with one new row each, of ranks 1 and 3, and three rows in the cache."""
    adapters = (costs.batch.AdapterRows(1, 1), costs.batch.AdapterRows(1, 3))
    return costs.batch.Batch(num_rows=2, num_sequences=2, context=3, adapters=adapters)


def test_a_decode_step_of_the_base_is_what_one_counts(costs: ModuleType) -> None:
    step = costs.base_model.base_step(tiny(costs), two_adapters(costs))

    weights = 576 + 80
    rows_of_products = 2 * (8 + 16) + 2 * (8 + 8) + 2 * (8 + 32) + 2 * (16 + 8) + 2 * (8 + 10)
    norms, rotary, gate = 3 * (4 * 2 * 8), 2 * 2 * (8 + 4 + 4), 3 * 2 * 16
    attention = 2 * (3 + 1) * (4 + 4) + 2 * 2 * 8  # keys and values of four tokens, a query and an output of 8
    embedding, choice = 2 * 2 * 8, 2 * 10
    assert step.nbytes == 2 * (weights + rows_of_products + norms + rotary + gate + attention + embedding + choice)
    assert step.flops == 2 * 2 * (576 + 80) + 2 * (2 * 2 * 4 * 8)  # products; scores and sums over 4 tokens of 8
    assert step.num_launches == costs.base_model.LAUNCHES_PER_LAYER + costs.base_model.LAUNCHES_AROUND


def test_adapters_add_their_own_ranks_and_rows_at_decode(costs: ModuleType) -> None:
    step = costs.lora_scheme.lora_step(tiny(costs), two_adapters(costs), max_rank=64)

    per_rank = (3 * 8 + 16) + (8 + 8) + (2 * 8 + 32) + (16 + 8)  # A of every member, B of all outputs
    rows = 2 * (8 + 8 + 8 + 16) + 2 * 2 * (16 + 8 + 32 + 8)  # x is read, y read and written
    sums = 4 * (3 + 1 + 2 + 1) * (1 + 3)  # float32, a row of each adapter's rank for each member
    assert step.nbytes == 2 * ((1 + 3) * per_rank + rows) + sums
    assert step.flops == 2 * (2 * 16 * 16) * per_rank  # each adapter fills a tile of 16 rows by 16 ranks
    assert step.num_launches == 4
    assert step.idle_programs == 0
    # programs of k, v and up read x; one program for the outputs of each member reads its sums
    assert sum(kernel.cache_bytes for kernel in step.kernels) == 2 * 2 * (2 * 8 + 8) + sums


def test_rows_are_shrunk_once_and_their_sums_read_by_every_program_of_outputs(costs: ModuleType) -> None:
    """64 rows of rank 32 by 8 inputs: four pieces, each with two programs for 256 outputs and one for 128."""
    group = costs.model_shape.Group("two", 8, (256, 128))
    fused = costs.lora_scheme._fused(group, (costs.batch.AdapterRows(64, 32),), 128, 2)

    x, a, b, y, sums = 64 * 8, 2 * 32 * 8, 32 * 384, 64 * 384, 64 * 32
    assert fused.nbytes == 2 * (x + a + b + 2 * y) + 4 * 2 * sums
    assert fused.cache_bytes == 2 * (x + 3 * (a + b)) + 4 * 3 * sums
    assert fused.program_bytes == 2 * (32 + 16) * 8 + 4 * 16 * 32 + 4 * 16 * 32 + 2 * 32 * 128
    assert fused.flops == 2 * 64 * 64 * (2 * 8 + 384)  # ranks up to 64 are products of 64
    assert fused.idle_programs == 4 * 2  # ranks from 64 to 128, of each piece and member


def test_inputs_are_split_between_programs_where_there_are_few(costs: ModuleType) -> None:
    """A row of rank 20 by 4,096 inputs: 16 programs take 256 of them each, and leave a sum each."""
    group = costs.model_shape.Group("one", 4096, (128,))
    fused = costs.lora_scheme._fused(group, (costs.batch.AdapterRows(1, 20),), 64, 2)

    assert fused.nbytes == 2 * (4096 + 20 * (4096 + 128) + 2 * 128) + 4 * 16 * 20
    assert fused.cache_bytes == 4 * 16 * 20
    assert fused.program_bytes == 2 * (1 + 20) * 256 + 4 * 20 + 4 * 16 * 20 + 2 * 20 * 128


def test_programs_take_more_where_there_is_work_for_enough_of_them(costs: ModuleType) -> None:
    group = costs.model_shape.Group("two", 4096, (512, 128))
    fused = costs.lora_scheme._fused(group, (costs.batch.AdapterRows(16 * 128, 1),), 64, 2)

    # 2 members x 128 pieces shrink by a program each; 5 tiles x 128 pieces are work for 256 programs of 2 tiles
    assert fused.program_bytes == 2 * (1 + 16) * 4096 + 4 * 16 + 4 * 16 + 2 * 256
    assert fused.cache_bytes == 2 * (2048 * 4096 + 127 * (2 * 4096 + 640)) + 4 * 3 * 2048


def test_peers_pad_ranks_and_clear_a_buffer(costs: ModuleType) -> None:
    server = costs.peers_scheme.PeerServer(max_rank=4, num_slots=2)
    step = costs.peers_scheme.peers_step(tiny(costs), two_adapters(costs), server)

    buffers = 4 * 2 * 4 * (3 + 1 + 2 + 1)  # float32, 2 rows of rank 4 for each slice
    per_rank = (3 * 8 + 16) + (8 + 8) + (2 * 8 + 32) + (16 + 8)
    rows = 2 * (8 + 8 + 8 + 16) + 2 * 2 * (16 + 8 + 32 + 8)
    assert step.nbytes == 3 * buffers + 2 * (2 * 4 * per_rank + rows)  # cleared, written, read
    assert step.flops == 2 * (2 * 32 * 16) * per_rank
    assert step.num_launches == 4 * costs.peers_scheme.LAUNCHES_PER_GROUP
    assert {kernel.program_bytes for kernel in step.kernels[1::3]} == {2 * (1 + 16) * 8, 2 * (1 + 16) * 16}


@pytest.mark.parametrize(
    ("num_slots", "num_idle"),
    [
        (2, 7 * 2 * 63),  # of 64 programs on one block of inputs 63 are idle: 7 slices, a tile for each of 2 adapters
        (3, 7 * 2 * 63 + 7 * 64 + 7),  # and all of the empty slot's, in shrink and expand
    ],
)
def test_peers_grids_have_programs_without_work(costs: ModuleType, num_slots: int, num_idle: int) -> None:
    server = costs.peers_scheme.PeerServer(max_rank=4, num_slots=num_slots)

    assert costs.peers_scheme.peers_step(tiny(costs), two_adapters(costs), server).idle_programs == num_idle


def test_a_prefill_attends_to_earlier_rows_alone(costs: ModuleType) -> None:
    """Two prompts of 3: rows see 1, 2 and 3 tokens, so 12 in all."""
    base = costs.base_model.base_step(tiny(costs), costs.batch.Batch.prefill(6, 2))

    assert base.flops == 2 * 6 * 576 + 2 * 2 * 80 + 2 * (2 * 12 * 8)


def test_a_launch_takes_its_cost_and_the_slowest_of_its_limits(costs: ModuleType) -> None:
    hardware = costs.hardware.Hardware(
        name="slow", memory_bandwidth=10, cache_bandwidth=100, num_processors=5, peak_flops=1000, launch_seconds=1
    )
    kernels = [
        costs.work.Kernel(nbytes=30, flops=2000),  # memory: 3 s
        costs.work.Kernel(nbytes=30, flops=5000),  # arithmetic: 5 s
        costs.work.Kernel(nbytes=30, cache_bytes=570),  # cache: 6 s
        costs.work.Kernel(nbytes=30, program_bytes=160),  # the processor of one program: 8 s
    ]

    assert [kernel.seconds(hardware) for kernel in kernels] == [4, 6, 7, 9]
    assert costs.work.Step.of(kernels).seconds(hardware) == 26


def test_llama_gives_the_figures_that_are_known_of_it(costs: ModuleType) -> None:
    """8.03 billion parameters, of which the embedding's are not read; an adapter of rank 16 has 42 million."""
    shape, decode = costs.model_shape.LLAMA_3_1_8B, costs.batch.Batch.decode
    base = costs.base_model.base_step(shape, decode(1, context=0))
    one, two = (
        costs.lora_scheme.lora_step(shape, decode(2, context=0, num_adapters=number, rank=16), max_rank=64)
        for number in (1, 2)
    )
    peers = costs.peers_scheme.peers_step(
        shape, decode(2, context=0, num_adapters=2, rank=16), costs.peers_scheme.PeerServer(64, 2)
    )

    assert base.nbytes / 2 == pytest.approx(8.03e9 - 128256 * 4096, rel=1e-3)
    assert two.nbytes - one.nbytes == 2 * 16 * 81920 * 32
    assert (two.num_launches, peers.num_launches) == (4 * 32, 12 * 32)


def test_more_adapters_than_rows_are_refused(costs: ModuleType) -> None:
    with pytest.raises(ValueError, match="2 rows cannot have 3 adapters"):
        costs.batch.Batch.decode(2, context=0, num_adapters=3, rank=8)


def test_the_command_prints_every_case_for_both_devices(
    costs: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline.py", "--ranks", "8"])

    assert importlib.import_module("roofline").main() == 0

    out = capsys.readouterr().out
    rows = [line.split("|")[1:4] for line in out.splitlines() if line.startswith("| ")]
    decode = [[cell.strip() for cell in row] for row in rows if row[0].strip() in ("32", "128")]
    assert [name in out for name in ("A100-80GB-SXM", "H100-SXM")] == [True, True]
    assert decode == 2 * [
        *(["32", number, rank] for number, rank in (("0", "0"), ("1", "8"), ("8", "8"), ("32", "8"))),
        *(["128", number, rank] for number, rank in (("0", "0"), ("1", "8"), ("8", "8"), ("32", "8"), ("128", "8"))),
    ]


@pytest.mark.parametrize("num_pieces", [1, 8, 32, 512])
def test_the_account_is_of_the_launchers_own_constants(costs: ModuleType, num_pieces: int) -> None:
    scheme, adapters = costs.lora_scheme, (costs.batch.AdapterRows(16, 8),) * num_pieces
    names = ("COLUMNS", "NUM_PROGRAMS", "SPLIT_INPUTS", "MAX_SPLITS")
    assert [getattr(scheme, name) for name in names] == [getattr(lora_tiles, name) for name in names]
    assert segments.PIECE_ROWS == scheme.PIECE_ROWS
    assert tuple(tile.rank for tile in lora_tiles.TILES[2]) == scheme.RANK_TILES
    for group in costs.model_shape.LLAMA_3_1_8B.groups:
        assert scheme._spans(group, adapters) == lora_tiles.spans(group.widths, num_pieces)
        for max_rank, num_blocks in ((8, 1), (64, 1), (256, 4)):
            taken, num_sums = scheme._splits(group, adapters, max_rank)
            assert taken == lora_tiles.splits(group.in_features, num_pieces * len(group.widths) * num_blocks)[1]
            assert num_sums == -(-group.in_features // taken)
