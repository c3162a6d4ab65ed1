"""A batch becomes one row of tokens whose every place, mask and adapter is its own sequence's."""

from __future__ import annotations

import pytest
import torch

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.model.batch_inputs import BatchInputs, build_inputs
from loramux.model.kv_cache import KVCache, LayerShape
from loramux_kernels import select_backend


def sequence(
    *, tokens: int, position: int, blocks: tuple[int, ...], slot: int = BASE_SLOT, num_logits: int = 1
) -> ScheduledSequence:
    token_ids = tuple(range(100 + position, 100 + position + tokens))
    return ScheduledSequence(str(blocks), token_ids, position, blocks, slot, num_logits, samples=num_logits > 0)


def build(*sequences: ScheduledSequence, has_lora: bool = True) -> BatchInputs:
    device = torch.device("cpu")
    cache = KVCache([LayerShape(1, 1, 1)], num_blocks=20, block_size=4, dtype=torch.float32, device=device)
    return build_inputs(sequences, cache, device, has_lora=has_lora)


def test_tokens_positions_and_places_line_up() -> None:
    inputs = build(
        sequence(tokens=3, position=0, blocks=(5,)),
        sequence(tokens=2, position=3, blocks=(2, 9)),
    )

    assert inputs.token_ids.tolist() == [[100, 101, 102, 103, 104]]
    assert inputs.positions.tolist() == [[0, 1, 2, 3, 4]]
    assert inputs.context.kv_slots.tolist() == [20, 21, 22, 11, 36]


def test_only_the_rows_that_need_logits_reach_the_head() -> None:
    inputs = build(
        sequence(tokens=3, position=0, blocks=(5,), num_logits=0),
        sequence(tokens=4, position=0, blocks=(6,), num_logits=3),
        sequence(tokens=1, position=4, blocks=(7, 8)),
    )

    assert inputs.logit_rows.tolist() == [4, 5, 6, 7]


def test_chunks_and_single_tokens_go_separate_ways() -> None:
    inputs = build(
        sequence(tokens=3, position=4, blocks=(5, 1)),
        sequence(tokens=1, position=0, blocks=(3,)),
        sequence(tokens=1, position=2, blocks=(4,)),
    )

    chunks = inputs.context.prefills
    assert chunks is not None
    assert (chunks.starts, chunks.counts, chunks.contexts, chunks.block_tables.tolist()) == ((0,), (3,), (4,), [[5, 1]])
    (group,) = inputs.context.decodes
    assert (group.rows.tolist(), group.lengths.tolist(), group.block_ids.tolist()) == ([3, 4], [1, 3], [[3], [4]])


def test_long_and_short_sequences_are_not_padded_to_each_other() -> None:
    inputs = build(
        sequence(tokens=1, position=0, blocks=(1,)),
        sequence(tokens=1, position=35, blocks=tuple(range(2, 11))),
    )

    assert sorted(group.block_ids.shape for group in inputs.context.decodes) == [(1, 1), (1, 9)]


def test_triton_is_given_all_single_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no padding, and one launch serves them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else it would refuse tensors on a CPU
    select_backend("triton")
    try:
        inputs = build(
            sequence(tokens=1, position=35, blocks=tuple(range(2, 11))),
            sequence(tokens=2, position=0, blocks=(12,)),
            sequence(tokens=1, position=0, blocks=(1,)),
        )
    finally:
        select_backend(None)

    (group,) = inputs.context.decodes
    assert (group.rows.tolist(), group.lengths.tolist()) == ([0, 3], [36, 1])
    assert group.block_ids[:, 0].tolist() == [2, 1]


def test_padding_stays_within_the_sequences_own_blocks() -> None:
    """What a stranger writes in this step may be NaN, and a masked NaN is still NaN."""
    inputs = build(
        sequence(tokens=1, position=15, blocks=(7, 8, 9, 10)),
        sequence(tokens=1, position=9, blocks=(4, 5, 6)),
    )

    (group,) = inputs.context.decodes
    assert group.block_ids.tolist() == [[7, 8, 9, 10], [4, 5, 6, 4]]


def test_neighbours_of_one_adapter_are_one_segment() -> None:
    inputs = build(
        sequence(tokens=2, position=0, blocks=(1,)),
        sequence(tokens=3, position=0, blocks=(2,), slot=0, num_logits=0),
        sequence(tokens=1, position=0, blocks=(3,), slot=0),
        sequence(tokens=2, position=0, blocks=(4,), slot=2),
    )

    rows, logits = inputs.context.segments, inputs.context.logit_segments
    assert rows is not None
    assert logits is not None
    assert (rows.slots, rows.starts, rows.lengths, rows.num_rows) == ((0, 2), (2, 6), (4, 2), 8)
    assert (logits.slots, logits.starts, logits.lengths, logits.num_rows) == ((0, 2), (1, 2), (1, 1), 3)


def test_base_rows_alone_have_no_segments() -> None:
    assert build(sequence(tokens=2, position=0, blocks=(1,))).context.segments is None
    assert build(sequence(tokens=2, position=0, blocks=(1,), slot=1), has_lora=False).context.segments is None
