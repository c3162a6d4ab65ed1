"""Paged attention in the forms that a CPU runs equals attention written down naively, for every rule of scores."""

from __future__ import annotations

import pytest
import torch

from attention_cases import NAN, make_attention
from lora_cases import assert_matches
from loramux_kernels import PrefillBatch, ScoreRule, paged_decode, store_kv

pytestmark = pytest.mark.usefixtures("backend")

SINKS = torch.linspace(-2, 2, 6)
RULES = {
    "plain": ScoreRule(0.3),
    "window": ScoreRule(0.3, window=5),
    "softcap": ScoreRule(0.3, softcap=2.0),
    "sinks": ScoreRule(0.3, sinks=SINKS),
    "everything": ScoreRule(0.3, window=33, softcap=3.0, sinks=SINKS),
}


@pytest.mark.parametrize("widths", [(64, 64), (24, 8)], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_decode_equals_the_truth(name: str, widths: tuple[int, int]) -> None:
    """Whatever the loops of numba do not know, torch does in their place."""
    batch = make_attention([(length - 1, 1) for length in (1, 15, 16, 17, 100)], widths=widths)
    got, want = batch.run_decode(RULES[name]), batch.truth(RULES[name])
    assert_matches("out", got[batch.owned], want[batch.owned], torch.float32)
    assert got[~batch.owned].isnan().all()


@pytest.mark.parametrize("widths", [(64, 64), (24, 8)], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_prefill_equals_the_truth(name: str, widths: tuple[int, int]) -> None:
    batch = make_attention([(0, 1), (0, 17), (15, 2), (16, 37), (83, 17)], widths=widths)
    got, want = batch.run_prefill(RULES[name]), batch.truth(RULES[name])
    assert_matches("out", got[batch.owned], want[batch.owned], torch.float32)
    assert got[~batch.owned].isnan().all()


@pytest.mark.parametrize("widths", [(64, 64), (72, 72), (24, 8)], ids=str)
@pytest.mark.parametrize("name", ["plain", "window", "everything"])
@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_keys_and_values_of_16_bits_are_read_exactly(kv_dtype: torch.dtype, name: str, widths: tuple[int, int]) -> None:
    batch = make_attention([(0, 1), (0, 17), (15, 2), (16, 37), (83, 17)], widths=widths, kv_dtype=kv_dtype)
    want = batch.truth(RULES[name])
    assert_matches("prefill", batch.run_prefill(RULES[name])[batch.owned], want[batch.owned], torch.float32)
    last = [start + count - 1 for start, (_context, count) in zip(batch.starts, batch.chunks, strict=True)]
    assert_matches("decode", batch.run_decode(RULES[name])[last], want[last], torch.float32)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["plain", "sinks"])
def test_a_sequence_of_no_tokens_gets_zeros(sinks: torch.Tensor | None) -> None:
    batch = make_attention([(4, 1)])
    out = batch.new_out()
    tables, lengths, rows = batch.tables[[0, 0]], torch.tensor([0, 5]), torch.tensor([0, 1])
    query = batch.query.nan_to_num(1.0)
    paged_decode(query, batch.keys, batch.values, tables, lengths, rows, out, ScoreRule(1.0, sinks=sinks))
    assert (out[0] == 0).all()
    assert not out[1].isnan().any()


def test_keys_and_values_are_stored_where_they_belong() -> None:
    key, value = torch.randn(3, 2, 8), torch.randn(3, 2, 4)
    keys, values = torch.full((2, 4, 2, 8), NAN), torch.full((2, 4, 2, 4), NAN)
    store_kv(key, value, torch.tensor([5, 2, 0]), keys, values)
    for cache, written in ((keys, key), (values, value)):
        assert torch.equal(cache.flatten(0, 1)[[5, 2, 0]], written)
        assert cache.isfinite().all(dim=(2, 3)).sum() == 3


def test_work_cuts_chunks_into_pieces_of_at_most_so_many_tokens() -> None:
    batch = PrefillBatch((3, 20), (9, 1), (100, 0), torch.zeros(2, 7, dtype=torch.int64))
    work = batch.work(4)
    assert work.tolist() == [[0, 3, 4, 100], [0, 7, 4, 104], [0, 11, 1, 108], [1, 20, 1, 0]]
    assert work.dtype == torch.int32
    assert batch.work(4) is work


def test_chunks_without_a_table_each_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in number: \(2, 2, 2, 1\)"):
        PrefillBatch((0, 1), (1, 1), (0, 0), torch.zeros(1, 1, dtype=torch.int64))
