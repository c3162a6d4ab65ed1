"""The Triton attention kernels against the float64 truth, run by Triton's interpreter on CPU.

Not collected by name: test_attention_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1 set
before triton is imported. No bfloat16: under the interpreter a bfloat16 tl.dot is silently wrong.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from attention_cases import NAN, make_attention
from lora_cases import assert_matches
from loramux_kernels import ScoreRule, attention_triton, paged_decode, select_backend, store_kv

LENGTHS = (1, 15, 16, 17, 100)
DECODES = [(length - 1, 1) for length in LENGTHS]
CHUNKS = [(0, 1), (0, 17), (15, 2), (16, 37), (83, 17)]
PLAIN = ScoreRule(0.3)
RULES = {
    "plain": {},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "window of blocks": {"window": 64},
    "softcap": {"softcap": 2.0},
    "sinks": {"has_sinks": True},
    "everything": {"window": 33, "softcap": 3.0, "has_sinks": True},
}


@pytest.fixture(autouse=True)
def _triton_by_name() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    select_backend("triton")


def rule_of(name: str, num_heads: int, dtype: torch.dtype = torch.float32) -> ScoreRule:
    options = dict(RULES[name])
    if options.pop("has_sinks", False):
        options["sinks"] = torch.linspace(-2, 2, num_heads).to(dtype)
    return ScoreRule(0.3, **options)


def small_splits(monkeypatch: pytest.MonkeyPatch, split: int = 16, most: int = 4) -> None:
    """Make contexts of a hundred tokens as long as those of thousands are."""
    monkeypatch.setattr(attention_triton, "SPLIT", {"SPLIT": split, "MAX_SPLITS": most})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_decode_equals_the_truth(name: str, dtype: torch.dtype) -> None:
    batch = make_attention(DECODES, dtype=dtype)
    rule = rule_of(name, 6, dtype)
    got, want = batch.run_decode(rule), batch.truth(rule)
    assert_matches("out", got[batch.owned], want[batch.owned], dtype)
    assert got[~batch.owned].isnan().all()


@pytest.mark.parametrize("name", RULES)
def test_decode_in_splits_equals_the_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a length each, whose number is that of a sequence's blocks or, for the longest, the highest."""
    small_splits(monkeypatch)
    batch = make_attention(DECODES, widths=(80, 72))
    rule = rule_of(name, 6)
    got, want = batch.run_decode(rule), batch.truth(rule)
    assert_matches("out", got[batch.owned], want[batch.owned], torch.float32)
    assert got[~batch.owned].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_prefill_equals_the_truth(name: str, dtype: torch.dtype) -> None:
    batch = make_attention(CHUNKS, dtype=dtype)
    rule = rule_of(name, 6, dtype)
    got, want = batch.run_prefill(rule), batch.truth(rule)
    assert_matches("out", got[batch.owned], want[batch.owned], dtype)
    assert got[~batch.owned].isnan().all()


@pytest.mark.parametrize(
    ("heads", "widths", "block_size"),
    [
        ((2, 2), (64, 64), 16),
        ((6, 2), (80, 80), 16),
        ((8, 2), (96, 96), 48),
        ((8, 1), (128, 128), 16),
        ((40, 1), (24, 8), 16),
        ((4, 2), (96, 64), 1),
        ((2, 1), (256, 256), 32),
    ],
    ids=str,
)
def test_every_layout_of_heads_and_blocks_is_served(
    heads: tuple[int, int], widths: tuple[int, int], block_size: int
) -> None:
    """Widths that are no powers of two, more heads than a tile has rows, values narrower than keys."""
    batch = make_attention([(0, 9), (30, 3), (49, 1)], heads=heads, widths=widths, block_size=block_size)
    want = batch.truth(PLAIN)
    assert_matches("prefill", batch.run_prefill(PLAIN)[batch.owned], want[batch.owned], torch.float32)
    last = torch.tensor([start + count - 1 for start, (_, count) in zip(batch.starts, batch.chunks, strict=True)])
    assert_matches("decode", batch.run_decode(PLAIN)[last], want[last], torch.float32)


@pytest.mark.parametrize("name", ["plain", "window of blocks", "everything"])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they change with the width of the table, which is that of the longest sequence, or of a captured graph."""
    small_splits(monkeypatch, most=8)
    batch = make_attention(DECODES)
    rule = rule_of(name, 6)
    together = batch.run_decode(rule)
    for sequence, row in enumerate(batch.starts):
        table = batch.tables[sequence : sequence + 1, : -(-LENGTHS[sequence] // 16)]
        lengths, rows = torch.tensor([LENGTHS[sequence]]), torch.tensor([row])
        alone = batch.new_out()
        paged_decode(batch.query, batch.keys, batch.values, table, lengths, rows, alone, rule)
        assert torch.equal(alone[row], together[row])


@pytest.mark.parametrize("name", ["plain", "window", "everything"])
def test_a_row_has_the_same_bits_however_its_prompt_is_cut(name: str) -> None:
    whole = make_attention([(0, 70)])
    rule = rule_of(name, 6)
    want = whole.run_prefill(rule)
    for begin, end in ((0, 7), (7, 40), (40, 41), (41, 70)):
        part = replace(whole, chunks=[(begin, end - begin)], starts=(whole.starts[0] + begin,))
        got = part.run_prefill(rule)
        assert torch.equal(got[part.owned], want[part.owned])


def test_a_sequence_of_no_tokens_gets_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        batch = make_attention([(4, 1)])
        out = batch.new_out()
        rows, lengths = torch.tensor([0, 1]), torch.tensor([0, 5])
        tables = torch.cat([torch.full_like(batch.tables, -1), batch.tables])
        for sinks in (None, torch.ones(6)):
            paged_decode(
                batch.query.nan_to_num(1.0),
                batch.keys,
                batch.values,
                tables,
                lengths,
                rows,
                out,
                ScoreRule(1.0, sinks=sinks),
            )
            assert (out[0] == 0).all()
            assert not out[1].isnan().any()
        small_splits(monkeypatch)


def test_a_context_longer_than_its_splits_takes_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    small_splits(monkeypatch, most=2)
    launched = []
    launch = attention_triton._paged_decode_kernel.run

    def count(*arguments: object, grid: tuple[int, ...], **options: object) -> object:
        launched.append(grid)
        return launch(*arguments, grid=grid, **options)

    monkeypatch.setattr(attention_triton._paged_decode_kernel, "run", count)
    batch = make_attention([(400, 1)])
    got, want = batch.run_decode(PLAIN), batch.truth(PLAIN)
    assert launched == [(2, 2, 1)]
    assert_matches("out", got[batch.owned], want[batch.owned], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_keys_and_values_are_stored_where_they_belong(dtype: torch.dtype) -> None:
    """Of rows and heads that lie apart, and nothing else."""
    key, value = torch.randn(3, 5, 90).to(dtype).transpose(0, 1)[..., 5:85], torch.randn(5, 3, 400).to(dtype)[..., :384]
    keys, values = torch.full((3, 4, 3, 80), 7.0, dtype=dtype), torch.full((3, 4, 3, 384), 7.0, dtype=dtype)
    slots = torch.tensor([9, 7, 0, 11, 3])
    store_kv(key, value, slots, keys, values)
    for cache, written in ((keys, key), (values, value)):
        want = torch.full_like(cache, 7.0)
        want.flatten(0, 1)[slots] = written
        assert torch.equal(cache, want)


def test_what_lies_before_every_window_is_not_read() -> None:
    """Its blocks may have another owner by now."""
    batch = make_attention([(100, 3)])
    rule = ScoreRule(0.3, window=16)
    want = batch.truth(rule)
    before = batch.tables[0, : (100 - 15) // 16]
    batch.keys[before], batch.values[before] = NAN, NAN
    assert_matches("prefill", batch.run_prefill(rule)[batch.owned], want[batch.owned], torch.float32)
    assert_matches("decode", batch.run_decode(rule)[3], want[3], torch.float32)


def test_a_value_that_is_no_number_stays_with_its_sequence() -> None:
    batch = make_attention(CHUNKS)
    want = batch.run_prefill(PLAIN)
    batch.values[batch.tables[2, 0]] = NAN
    got = batch.run_prefill(PLAIN)
    strange = slice(batch.starts[2], batch.starts[2] + CHUNKS[2][1])
    assert got[strange].isnan().all()
    want[strange] = NAN
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
