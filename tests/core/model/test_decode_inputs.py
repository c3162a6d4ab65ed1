"""A decode step's inputs lie where they always lie, and the rows that pad it are nobody's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.model.batch_inputs import build_inputs
from loramux.model.decode_inputs import DecodeInputs, bucket_sizes
from loramux.model.kv_cache import NUM_SCRATCH_SLOTS, KVCache, LayerShape

CPU = torch.device("cpu")


def make_cache(block_size: int = 4) -> KVCache:
    return KVCache([LayerShape(1, 1, 1)], num_blocks=20, block_size=block_size, dtype=torch.float32, device=CPU)


def make_inputs(cache: KVCache, max_rows: int = 16) -> DecodeInputs:
    return DecodeInputs(cache, max_rows=max_rows, max_blocks=5, device=CPU)


def sequence(token: int, position: int, *blocks: int, slot: int = BASE_SLOT) -> ScheduledSequence:
    return ScheduledSequence(str(blocks), (token,), position, blocks, slot, 1, samples=True)


@pytest.mark.parametrize(
    ("max_rows", "sizes"), [(1, (1,)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (27, (1, 2, 4, 8, 16, 24, 27))]
)
def test_buckets_double_and_then_go_by_eights(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(max_rows) == sizes


@pytest.mark.parametrize("max_rows", [1, 7, 64, 100])
def test_no_bucket_pads_with_more_rows_than_there_are_scratch_slots(max_rows: int) -> None:
    sizes = (0, *bucket_sizes(max_rows))

    assert max(size - smaller - 1 for smaller, size in pairwise(sizes)) <= NUM_SCRATCH_SLOTS


def test_a_filled_step_is_the_step_that_is_built() -> None:
    cache = make_cache()
    inputs = make_inputs(cache)
    sequences = [sequence(7, 9, 4, 5, 6), sequence(8, 0, 2), sequence(9, 15, 7, 8, 9, 10)]
    built = build_inputs(sequences, cache, CPU, has_lora=False)

    inputs.fill(sequences, 3)

    step = inputs.step(3, None)
    assert torch.equal(step.token_ids, built.token_ids)
    assert torch.equal(step.positions, built.positions)
    assert torch.equal(step.context.kv_slots, built.context.kv_slots)
    (group,) = step.context.decodes
    assert (group.rows.tolist(), group.lengths.tolist()) == ([0, 1, 2], [10, 1, 16])
    assert group.block_ids.tolist() == [[4, 5, 6, 4, 4], [2, 2, 2, 2, 2], [7, 8, 9, 10, 7]]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_rows_that_pad_write_to_scratch_slots_of_their_own_and_see_only_those(block_size: int) -> None:
    cache = make_cache(block_size)
    inputs = make_inputs(cache)

    inputs.fill([sequence(7, 0, 3)], 8)

    context = inputs.step(8, None).context
    padding = context.kv_slots[1:]
    assert len(set(padding.tolist())) == 7
    assert int(padding.min()) >= cache.num_blocks * block_size
    assert int(padding.max()) < cache.keys[0].flatten(0, 1).shape[0]
    (group,) = context.decodes
    assert int(group.block_ids[1:].min()) >= cache.num_blocks
    positions = inputs.step(8, None).positions[0]
    assert torch.equal(group.lengths, positions + 1)
    assert torch.equal(group.block_ids[:, 0] * block_size + positions, context.kv_slots)


def test_every_step_lies_at_the_same_addresses() -> None:
    inputs = make_inputs(make_cache())

    def addresses() -> list[int]:
        step = inputs.step(4, None)
        (group,) = step.context.decodes
        tensors = (step.token_ids, step.positions, step.context.kv_slots, group.rows, group.block_ids, group.lengths)
        return [tensor.data_ptr() for tensor in tensors]

    inputs.fill([sequence(7, 0, 3)], 4)
    before = addresses()
    inputs.fill([sequence(7, 0, 3), sequence(8, 2, 5, slot=1)], 4)

    assert addresses() == before


def test_a_row_of_the_last_step_is_not_taken_for_one_of_this() -> None:
    inputs = make_inputs(make_cache())
    inputs.fill([sequence(7, 9, 4, 5, 6), sequence(8, 6, 2, 3)], 2)

    inputs.fill([sequence(5, 1, 9)], 2)

    context = inputs.step(2, None).context
    assert context.kv_slots.tolist() == [37, 80]
    assert context.decodes[0].block_ids.tolist() == [[9] * 5, [20] * 5]


def test_a_table_is_written_again_where_it_grew_and_where_padding_was() -> None:
    inputs = make_inputs(make_cache())

    def tables() -> list[list[int]]:
        return inputs.step(2, None).context.decodes[0].block_ids.tolist()

    inputs.fill([sequence(7, 6, 4, 5), sequence(8, 2, 3)], 2)
    inputs.fill([sequence(7, 8, 4, 5, 6), sequence(8, 3, 3)], 2)
    assert tables() == [[4, 5, 6, 4, 4], [3] * 5]
    inputs.fill([sequence(8, 3, 3)], 2)
    assert tables() == [[3] * 5, [20] * 5]
    inputs.fill([sequence(8, 3, 3), sequence(9, 2, 3)], 2)
    assert tables() == [[3] * 5, [3] * 5]
