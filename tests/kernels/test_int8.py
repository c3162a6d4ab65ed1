"""Products by int8 weights: numba's loop and the torch reference against float64."""

from __future__ import annotations

import pytest
import torch

from loramux_kernels import int8_linear, quantize_int8

pytestmark = pytest.mark.usefixtures("backend")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 9, 33])
@pytest.mark.parametrize("in_features", [1, 63, 576, 2049])
@pytest.mark.parametrize("out_features", [1, 5, 192, 3072])
def test_a_product_is_that_of_the_dequantized_weight(num_rows: int, in_features: int, out_features: int) -> None:
    weight, x, bias = quantize_int8(random(out_features, in_features)), random(num_rows, in_features), random(7)[0]
    wide = weight.values.double() * weight.scales.double()[:, None]
    want = x.double() @ wide.T
    got = int8_linear(x, weight)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * in_features)
    torch.testing.assert_close(int8_linear(x, weight, bias.expand(out_features)), got + bias)


@pytest.mark.parametrize("backend", ["numba"], indirect=True)  # torch's sums go by the shape of the batch
def test_a_row_is_the_same_to_the_bit_whatever_rows_are_beside_it() -> None:
    weight, x = quantize_int8(random(101, 577)), random(33, 577)
    together = int8_linear(x, weight)
    for start, stop in ((0, 1), (5, 7), (6, 9), (20, 27), (32, 33)):
        assert torch.equal(int8_linear(x[start:stop], weight), together[start:stop])


def test_weights_are_off_by_half_a_step_of_their_own_output_at_most() -> None:
    weight = random(64, 96) * torch.logspace(-6, 6, 64)[:, None]
    weight[3] = 0
    rounded = quantize_int8(weight)
    error = (rounded.dequantize() - weight).abs()
    assert (error <= 0.501 * rounded.scales[:, None]).all()
    assert rounded.values.abs().amax(dim=1)[weight.abs().amax(dim=1) > 0].eq(127).all()
    assert rounded.dequantize()[3].eq(0).all()


def test_weights_take_a_quarter_of_their_float32_bytes() -> None:
    weight = random(64, 576)
    assert quantize_int8(weight).nbytes == weight.nbytes // 4 + 64 * 4


def test_what_is_no_number_stays_in_its_row() -> None:
    x = random(6, 64)
    x[1, 5] = float("nan")
    out = int8_linear(x, quantize_int8(random(9, 64)))
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4, 5]].isfinite().all()
