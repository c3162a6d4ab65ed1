"""The small ops and paged decode attention: numba's loops and the torch references against float64."""

from __future__ import annotations

import pytest
import torch

from loramux_kernels import Backend, ScoreRule, add_rows, paged_decode, rms_norm, rotate_and_store, silu_mul

pytestmark = pytest.mark.usefixtures("backend")

ROWS = (1, 2, 3, 63, 100)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("hidden", [1, 63, 64, 2049])
def test_rms_norm_scales_each_row_to_unit_mean_square(num_rows: int, hidden: int) -> None:
    x, weight = random(num_rows, hidden) * 7, random(hidden)
    wide = x.double()
    want = weight * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [1, 63, 1536])
def test_silu_mul_gates_the_second_half_by_the_first(num_rows: int, width: int) -> None:
    gate_up = random(num_rows, 2 * width) * 5
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(silu_mul(gate_up).double(), gate / (1 + (-gate).exp()) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("width", [1, 63, 1536])
def test_add_rows_adds_in_place_rows_one_row_to_all_and_whatever_lies_apart(num_rows: int, width: int) -> None:
    rows, one = random(num_rows, width), random(width + 1)[:width]
    for x in (rows, one, one[:1].expand(width), random(width, num_rows).t()):
        y = random(num_rows, width + 2)[:, :width].contiguous()
        want = y + x
        add_rows(y, x)
        assert torch.equal(y, want)


def test_silu_mul_holds_at_the_ends_of_float32() -> None:
    gate_up = torch.tensor([[-200.0, -88.0, 0.0, 88.0, 1e30, 1.0, 2.0, 3.0, 4.0, 5.0]])
    torch.testing.assert_close(silu_mul(gate_up), torch.tensor([[0.0, 0.0, 0.0, 352.0, 5e30]]), rtol=1e-6, atol=1e-30)


def test_what_is_no_number_stays_none_in_its_row_alone() -> None:
    x = random(3, 64)
    x[1, 5] = float("nan")
    for out in (rms_norm(x, random(64), 1e-5), silu_mul(x)):
        assert out[1].isnan().any()
        assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), [(9, 3, 64), (4, 4, 8), (8, 1, 2)])
def test_rotate_and_store_rotates_in_place_and_fills_the_cache(
    num_rows: int, num_heads: int, num_kv_heads: int, dim: int
) -> None:
    qkv = random(num_rows, (num_heads + 2 * num_kv_heads) * dim)
    cos, sin = random(num_rows, dim), random(num_rows, dim + 1)[:, :dim].contiguous()
    slots = torch.randperm(2 * num_rows)[:num_rows]
    keys, values = (torch.full((2 * num_rows, num_kv_heads, dim), 7.0) for _ in range(2))
    heads = qkv.double().view(num_rows, -1, dim)
    low, high = heads.chunk(2, dim=-1)
    want = heads * cos[:, None] + torch.cat([-high, low], dim=-1) * sin[:, None]
    want[:, -num_kv_heads:] = heads[:, -num_kv_heads:]

    rotate_and_store(qkv, cos, sin, slots, keys, values, num_heads=num_heads)

    got = qkv.double().view(num_rows, -1, dim)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(keys[slots].double(), got[:, num_heads:-num_kv_heads])
    torch.testing.assert_close(values[slots].double(), got[:, -num_kv_heads:])
    others = torch.ones(2 * num_rows, dtype=torch.bool)
    others[slots] = False
    assert (keys[others] == 7).all()
    assert (values[others] == 7).all()


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 8, 2])
def test_a_cache_of_16_bits_gets_the_nearest_numbers_and_what_was_finite_stays_so(
    kv_dtype: torch.dtype, dim: int
) -> None:
    inf, nan, largest = float("inf"), float("nan"), torch.finfo(kv_dtype).max
    strange = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1e-7, -3e-8, 1e-40, 65519.0, 65520.0]
    strange += [-65504.0, 1e6, -1e30, 3.4e38, -3.4e38, inf, -inf, nan, -nan]
    num_rows = 4
    qkv = random(num_rows, 6 * dim)
    value = qkv[:, 4 * dim :]
    for index, number in enumerate(strange):
        value[index % num_rows, index // num_rows % (2 * dim)] = number
    cos, sin, slots = torch.ones(num_rows, dim), torch.zeros(num_rows, dim), torch.tensor([5, 0, 3, 2])
    keys, values = (torch.full((6, 2, dim), 7.0, dtype=kv_dtype) for _ in range(2))

    rotate_and_store(qkv, cos, sin, slots, keys, values, num_heads=2)

    for kept, given in ((keys, qkv[:, 2 * dim : 4 * dim]), (values, value)):
        finite = given.clamp(-largest, largest).to(kv_dtype)
        want = torch.where(given.isinf(), given.to(kv_dtype), finite).view(num_rows, 2, dim)
        assert torch.equal(kept[slots].nan_to_num(9.0, inf, -inf), want.nan_to_num(9.0, inf, -inf))
        assert torch.equal(kept[slots].isnan(), want.isnan())
        assert (kept[[1, 4]] == 7).all()
    assert values[slots].isfinite().sum() == given.isfinite().sum()


def attend(
    lengths: list[int], *, heads: tuple[int, int], dim: int, block_size: int, window: int | None, strange: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what paged_decode gives, and the truth; `strange` fills everything that nobody should see."""
    num_heads, num_kv_heads = heads
    most = -(-max(lengths) // block_size)
    num_blocks = most * len(lengths) + 1
    keys, values = (torch.full((num_blocks, block_size, num_kv_heads, dim), strange) for _ in range(2))
    tables = torch.randperm(num_blocks - 1)[: most * len(lengths)].view(len(lengths), most)
    query = random(len(lengths) + 1, num_heads * dim + 3)[:, : num_heads * dim]
    rows = torch.arange(len(lengths), 0, -1)
    out = torch.full((len(lengths) + 1, num_heads * dim), 9.0)
    want = out.double()
    for sequence, length in enumerate(lengths):
        key, value = random(length, num_kv_heads, dim), random(length + 1, num_kv_heads, dim)[1:]
        for position in range(length):
            block, offset = tables[sequence, position // block_size], position % block_size
            keys[block, offset], values[block, offset] = key[position], value[position]
        first = max(0, length - window) if window else 0
        wide = query[rows[sequence]].double().view(num_kv_heads, -1, dim)
        weights = torch.einsum("hgd,thd->hgt", wide, key[first:].double()).mul(0.3).softmax(-1)
        want[rows[sequence]] = torch.einsum("hgt,thd->hgd", weights, value[first:].double()).flatten()
    paged_decode(query, keys, values, tables, torch.tensor(lengths), rows, out, ScoreRule(0.3, window))
    return out.double(), want


@pytest.mark.parametrize("window", [None, 1, 5, 16])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("heads", "dim"), [((9, 3), 64), ((4, 4), 8), ((7, 1), 6), ((8, 2), 96)])
def test_each_sequence_attends_to_its_own_blocks(
    heads: tuple[int, int], dim: int, block_size: int, window: int | None
) -> None:
    got, want = attend([1, 3, 16, 17, 40], heads=heads, dim=dim, block_size=block_size, window=window)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["numba"], indirect=True)  # a masked NaN is still NaN to the reference
def test_what_nobody_should_see_in_a_block_is_not_read() -> None:
    got, want = attend([1, 3, 17], heads=(9, 3), dim=64, block_size=16, window=None, strange=float("nan"))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["numba"], indirect=True)  # torch's sums go by the shape of the batch
def test_a_row_is_the_same_to_the_bit_whoever_else_is_in_the_batch() -> None:
    x, weight = random(65, 960), random(960)
    norms, gates = rms_norm(x, weight, 1e-5), silu_mul(x)
    for row in (0, 1, 64):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-5)[0], norms[row])
        assert torch.equal(silu_mul(x[row : row + 1])[0], gates[row])
    keys, values, query = random(60, 16, 3, 64), random(60, 16, 3, 64), random(20, 9 * 64)
    tables, lengths, out = torch.randperm(60).view(20, 3), torch.arange(20, 40), torch.zeros(2, 20, 9 * 64)
    paged_decode(query, keys, values, tables, lengths, torch.arange(20), out[0], ScoreRule(0.3))
    for row in range(20):
        one = slice(row, row + 1)
        paged_decode(query, keys, values, tables[one], lengths[one], torch.tensor([row]), out[1], ScoreRule(0.3))
    assert torch.equal(out[0], out[1])


def test_numba_refuses_what_it_cannot_compute(backend: Backend) -> None:
    if backend == "numba":
        with pytest.raises(RuntimeError, match=r"backend 'numba' needs float32 tensors .* got torch.bfloat16 on cpu"):
            silu_mul(torch.zeros(1, 2, dtype=torch.bfloat16))
    else:
        assert silu_mul(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype is torch.bfloat16
