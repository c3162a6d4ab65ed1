"""Looking at wide rows by way of their blocks finds what torch finds, and no row changes what another's comes to."""

import pytest
import torch

from loramux.model.blocks import BLOCK_SIZE, SEARCH_SIZE, Blocks, largest

WIDTHS = (1, 7, BLOCK_SIZE, SEARCH_SIZE - 1, SEARCH_SIZE, SEARCH_SIZE + 1, 40 * BLOCK_SIZE, 40 * BLOCK_SIZE + 5)


def make_values(num_rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.rand(num_rows, width, generator=generator) ** 8


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_the_largest_and_its_first_place_are_those_of_torch(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.randint(-4, 4, (9, width), generator=generator).to(dtype)  # full of ties
    values[0] = -torch.inf
    maximum, place = largest(values)
    expected = values.max(dim=-1)
    assert torch.equal(maximum, expected.values)
    assert torch.equal(place, expected.indices)


@pytest.mark.parametrize("place", (0, SEARCH_SIZE, 3 * SEARCH_SIZE + 4))
@pytest.mark.parametrize("poison", (torch.nan, torch.inf))
def test_what_is_not_finite_is_the_largest(place: int, poison: float) -> None:
    values = torch.zeros(2, 3 * SEARCH_SIZE + 5)
    values[1, place] = poison
    maximum, found = largest(values)
    assert maximum.isfinite().tolist() == [True, False]
    assert found.tolist() == [0, place]


@pytest.mark.parametrize("k", (1, 3, 17))
@pytest.mark.parametrize("width", (40, 40 * BLOCK_SIZE, 40 * BLOCK_SIZE + 5))
@pytest.mark.parametrize("coarse", (False, True))
def test_the_k_largest_are_those_of_topk(k: int, width: int, coarse: bool) -> None:
    values = make_values(9, width)
    values = (values * 4).round() if coarse else values
    assert torch.equal(Blocks(values).largest(k), torch.topk(values, k, dim=-1).values)


@pytest.mark.parametrize("threshold", (0.0, 0.5, 0.95))
def test_sums_count_what_reaches_the_threshold(threshold: float) -> None:
    values = make_values(5, 40 * BLOCK_SIZE + 5)
    thresholds = torch.full((5, 1), threshold)
    sums = Blocks(values).sums(thresholds)
    kept = torch.nn.functional.pad(torch.where(values >= thresholds, values, 0), (0, BLOCK_SIZE - 5))
    torch.testing.assert_close(sums, kept.double().unflatten(-1, (-1, BLOCK_SIZE)).sum(dim=-1), rtol=1e-6, atol=0)


def test_sums_are_rounded_alike_whatever_the_neighbours_keep() -> None:
    """Neighbours that keep all their blocks make the sums take another way than rows that keep a few."""
    num_narrow, end = 16, 100 * BLOCK_SIZE
    values = make_values(64, end + 45)
    values[:num_narrow, 5 * BLOCK_SIZE : end] = 0
    values[:num_narrow, end:] = make_values(num_narrow, 45).sqrt()
    thresholds = torch.zeros(64, 1)
    thresholds[:num_narrow] = 1e-6
    together = Blocks(values).sums(thresholds)[:num_narrow]
    for index in range(num_narrow):
        alone = Blocks(values[index : index + 1]).sums(thresholds[index : index + 1])
        assert torch.equal(together[index : index + 1], alone)
