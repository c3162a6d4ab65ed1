"""A KV block is referenced or free, never both, and is found again only by what really lies in it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux.engine.block_pool import BlockHash, BlockPool, hash_block

BLOCK_SIZE = 4


def make_pool(num_blocks: int = 4) -> BlockPool:
    return BlockPool(num_blocks=num_blocks, block_size=BLOCK_SIZE)


def hashes_of(num_blocks: int, digest: str | None = None) -> list[BlockHash]:
    """The hashes of a sequence 0, 1, 2, … of so many blocks."""
    hashes: list[BlockHash] = []
    for index in range(num_blocks):
        tokens = range(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE)
        hashes.append(hash_block(hashes[-1] if hashes else None, list(tokens), digest))
    return hashes


def cached_sequence(pool: BlockPool, hashes: list[BlockHash]) -> list[int]:
    blocks = pool.allocate(len(hashes))
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.cache(block, block_hash)
    return blocks


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_counts_the_blocks_that_tokens_need(num_tokens: int, num_blocks: int) -> None:
    assert make_pool().blocks_for(num_tokens) == num_blocks


def test_all_blocks_can_be_taken_and_none_more() -> None:
    pool = make_pool(3)

    blocks = pool.allocate(3)

    assert sorted(blocks) == [0, 1, 2]
    assert not pool.can_allocate(1)
    assert pool.num_free == 0


def test_a_hash_stands_for_the_adapter_everything_before_and_the_tokens() -> None:
    same = hash_block(None, [1, 2, 3, 4], "a")

    assert hash_block(None, [1, 2, 3, 4], "a") == same
    assert hash_block(None, [1, 2, 3, 4], "b") != same
    assert hash_block(None, [1, 2, 3, 4], None) != same
    assert hash_block(None, [1, 2, 3, 5], "a") != same
    assert hash_block(same, [1, 2, 3, 4], "a") != same


def test_the_longest_cached_prefix_is_found_and_stays_untaken() -> None:
    pool = make_pool()
    hashes = hashes_of(3)
    blocks = cached_sequence(pool, hashes[:2])
    pool.release(blocks)

    assert pool.find_prefix(hashes) == blocks
    assert pool.num_free == pool.num_blocks


def test_a_prefix_ends_where_a_block_is_missing() -> None:
    pool = make_pool()
    hashes = hashes_of(3)
    blocks = cached_sequence(pool, hashes)
    pool.forget([blocks[1]])

    assert pool.find_prefix(hashes) == blocks[:1]


def test_another_adapters_blocks_are_never_found() -> None:
    pool = make_pool()
    cached_sequence(pool, hashes_of(2, digest="a"))

    assert pool.find_prefix(hashes_of(2, digest="b")) == []
    assert pool.find_prefix(hashes_of(2, digest=None)) == []


def test_a_shared_block_is_free_after_its_last_release() -> None:
    pool = make_pool()
    blocks = pool.allocate(1)
    pool.share(blocks)

    pool.release(blocks)
    assert pool.num_free == 3
    pool.release(blocks)
    assert pool.num_free == 4


def test_sharing_a_free_cached_block_takes_it() -> None:
    pool = make_pool()
    blocks = cached_sequence(pool, hashes_of(2))
    pool.release(blocks)
    assert pool.num_free_among(blocks) == 2

    pool.share(blocks)

    assert pool.num_free == 2
    assert pool.num_free_among(blocks) == 0


def test_blocks_worth_nothing_are_reused_before_cached_ones() -> None:
    pool = make_pool(3)
    cached = cached_sequence(pool, hashes_of(1))
    plain = pool.allocate(2)
    pool.release(cached)
    pool.release(plain)

    assert set(pool.allocate(2)) == set(plain)
    assert pool.find_prefix(hashes_of(1)) == cached


def test_the_least_recently_freed_cached_block_goes_first() -> None:
    pool = make_pool(2)
    first = cached_sequence(pool, hashes_of(1, digest="first"))
    second = cached_sequence(pool, hashes_of(1, digest="second"))
    pool.release(second)
    pool.release(first)

    assert pool.allocate(1) == second
    assert pool.find_prefix(hashes_of(1, digest="first")) == first


def test_the_end_of_a_sequence_is_given_up_before_its_beginning() -> None:
    pool = make_pool(3)
    hashes = hashes_of(3)
    blocks = cached_sequence(pool, hashes)
    pool.release(blocks)

    assert pool.allocate(1) == [blocks[2]]
    assert pool.find_prefix(hashes) == blocks[:2]


def test_a_reused_block_forgets_what_it_held() -> None:
    pool = make_pool(1)
    pool.release(cached_sequence(pool, hashes_of(1)))

    pool.allocate(1)

    assert pool.find_prefix(hashes_of(1)) == []


def test_the_first_block_of_a_hash_stays_the_known_one() -> None:
    pool = make_pool()
    first = cached_sequence(pool, hashes_of(1))
    second = cached_sequence(pool, hashes_of(1))
    pool.forget(second)

    assert pool.find_prefix(hashes_of(1)) == first


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences come, share, grow, end and fail; a model of who holds what is kept beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(6)
        self.tables: list[list[int]] = []
        self.contents: dict[int, BlockHash] = {}

    @rule(num_blocks=st.integers(1, 4), digest=st.sampled_from(["a", "b", None]))
    def admit(self, num_blocks: int, digest: str | None) -> None:
        hashes = hashes_of(num_blocks, digest)
        cached = self.pool.find_prefix(hashes)
        for block, block_hash in zip(cached, hashes, strict=False):
            assert self.contents[block] == block_hash, "a block was found by a hash that is not its content's"
        num_missing = num_blocks - len(cached)
        if not self.pool.can_allocate(num_missing + self.pool.num_free_among(cached)):
            return
        self.pool.share(cached)
        fresh = self.pool.allocate(num_missing)
        for block, block_hash in zip(fresh, hashes[len(cached) :], strict=True):
            self.contents[block] = block_hash
            self.pool.cache(block, block_hash)
        self.tables.append(cached + fresh)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def grow_by_a_block_that_is_not_full(self, data: st.DataObject) -> None:
        if self.pool.can_allocate(1):
            table = data.draw(st.sampled_from(self.tables))
            table += self.pool.allocate(1)
            self.contents.pop(table[-1], None)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.forget(table)
        for block in table:
            self.contents.pop(block, None)
        self.pool.release(table)

    @invariant()
    def counts_every_holder(self) -> None:
        self.pool.check_integrity()
        holders = Counter(block for table in self.tables for block in table)
        assert self.pool.num_free == self.pool.num_blocks - len(holders)
        assert self.pool.num_free_among(range(self.pool.num_blocks)) == self.pool.num_free
        assert self.pool._references == [holders[block] for block in range(self.pool.num_blocks)]

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        assert self.pool.num_free == self.pool.num_blocks


TestBlockPoolMachine = BlockPoolMachine.TestCase
TestBlockPoolMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
