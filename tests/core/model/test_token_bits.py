"""Sets of token ids as bits are the sets that they stand for, whatever the widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramux.model.token_bits import difference, intersection, pack, unpack
from loramux.text.grammar import TokenBits

ids = st.sets(st.integers(0, 70))


def members(bits: TokenBits) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())


@given(ids, ids)
def test_they_behave_like_sets(one: set[int], other: set[int]) -> None:
    assert members(pack(one)) == one
    assert members(intersection(pack(one), pack(other))) == one & other
    assert members(difference(pack(one), other)) == one - other


@given(st.lists(ids, min_size=1, max_size=4), st.sampled_from([1, 7, 8, 9, 64, 100]))
def test_a_row_of_flags_is_cut_or_filled_to_the_vocabulary(rows: list[set[int]], vocab_size: int) -> None:
    flags = unpack([pack(row) for row in rows], vocab_size, torch.device("cpu"))

    assert flags.shape == (len(rows), vocab_size)
    assert [set(torch.nonzero(row).flatten().tolist()) for row in flags] == [
        {token_id for token_id in row if token_id < vocab_size} for row in rows
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_flags_are_the_same_on_a_gpu() -> None:
    rows = [pack({0, 9, 63}), pack({5})]
    assert torch.equal(unpack(rows, 70, torch.device("cuda")).cpu(), unpack(rows, 70, torch.device("cpu")))
