"""Products by weights in panels: numba's loop and the torch reference against float64."""

from __future__ import annotations

import pytest
import torch

from loramux_kernels import PackedWeight, pack_weight, packed_linear

pytestmark = pytest.mark.usefixtures("backend")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 7, 9, 12, 13, 25, 33])  # no tile to three, of one size and of two
@pytest.mark.parametrize("in_features", [1, 63, 576, 2048, 4100])
@pytest.mark.parametrize("out_features", [1, 5, 32, 33, 192])
def test_a_product_is_that_of_the_weight(num_rows: int, in_features: int, out_features: int) -> None:
    weight, x, bias = random(out_features, in_features), random(num_rows, in_features), random(out_features)
    got = packed_linear(x, pack_weight(weight))
    want = x.double() @ weight.double().T
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * in_features)
    biased = packed_linear(x, pack_weight(weight), bias)
    torch.testing.assert_close(biased.double(), want + bias.double(), rtol=1e-5, atol=1e-6 * in_features)


@pytest.mark.parametrize("backend", ["numba"], indirect=True)  # torch's sums go by the shape of the batch
def test_a_row_is_the_same_to_the_bit_whatever_rows_are_beside_it() -> None:
    weight, x = pack_weight(random(101, 2577)), random(33, 2577)
    together = packed_linear(x, weight)
    for start, stop in ((0, 1), (5, 7), (6, 9), (11, 14), (20, 27), (32, 33)):
        assert torch.equal(packed_linear(x[start:stop], weight), together[start:stop])


def test_rows_may_lie_apart_and_their_elements_too() -> None:
    weight, x = pack_weight(random(70, 50)), random(9, 200)
    torch.testing.assert_close(packed_linear(x[:, 20:70], weight), packed_linear(x[:, 20:70].clone(), weight))
    torch.testing.assert_close(packed_linear(x[:, ::4], weight), packed_linear(x[:, ::4].clone(), weight))


@pytest.mark.parametrize("out_features", [1, 32, 101])
def test_a_weight_is_unpacked_as_it_was(out_features: int) -> None:
    weight = random(out_features, 77)
    assert torch.equal(pack_weight(weight).unpack(), weight)


def test_no_column_is_written_or_read_beyond_the_last() -> None:
    packed = pack_weight(random(33, 40))
    packed.panels[-1, :, 1:] = float("nan")
    assert packed_linear(random(13, 40), PackedWeight(packed.panels, 33)).isfinite().all()


def test_what_is_no_number_stays_in_its_row() -> None:
    x = random(14, 64)
    x[1, 5] = float("nan")
    out = packed_linear(x, pack_weight(random(9, 64)))
    assert out[1].isnan().all()
    assert out[[0, *range(2, 14)]].isfinite().all()


def test_only_float32_is_packed() -> None:
    with pytest.raises(ValueError, match=r"torch\.float16 on cpu"):
        pack_weight(torch.zeros(4, 4, dtype=torch.float16))
