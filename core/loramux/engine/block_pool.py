"""BlockPool: who owns which KV block, and which blocks still hold a prefix worth reusing.

A block is referenced (by one or more sequences) or free, never both; a free block may still be cached: it keeps its
hash until it is handed out again, least recently freed first. Not thread-safe: the engine thread owns it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

BlockHash = bytes


def hash_block(
    parent: BlockHash | None, token_ids: Sequence[int], digest: str | None, cache_salt: str | None = None
) -> BlockHash:
    """Return the identity of one full block: all before it, its tokens, the adapter that computed it, and for whom."""
    state = hashlib.sha256(parent if parent is not None else f"root:{(digest, cache_salt)!r}".encode())
    state.update(array("q", token_ids).tobytes())
    return state.digest()


class BlockPool:
    """Fixed number of blocks of `block_size` tokens each."""

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks; what they had cached is forgotten. The caller asks `can_allocate` first."""
        assert self.can_allocate(num_blocks)
        blocks = []
        for _ in range(num_blocks):
            block, _none = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def find_prefix(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Return the blocks of the longest cached prefix, without taking them."""
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each of these cached or referenced blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks are free now, and so would be used up by `share`."""
        return sum(self._references[block] == 0 for block in blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block of one sequence, in block-table order.

        The tail of a sequence is the least likely to be shared, so it becomes free first.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def cache(self, block: int, block_hash: BlockHash) -> None:
        """Let a referenced, full block be found by its hash; the first block of a hash stays the known one."""
        assert self._references[block] > 0
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def forget(self, blocks: Iterable[int]) -> None:
        """Stop offering these blocks for reuse: their content is not what their hash says."""
        for block in blocks:
            self._forget(block)

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None

    def check_integrity(self) -> None:
        """Raise AssertionError when a block is both free and referenced, lost, or cached under a wrong hash."""
        for block, references in enumerate(self._references):
            assert (references == 0) == (block in self._free), f"block {block}: {references} references"
        for block_hash, block in self._block_of.items():
            assert self._hash_of[block] == block_hash, f"block {block} is cached under another hash"
        assert len(self._block_of) == sum(block_hash is not None for block_hash in self._hash_of)
