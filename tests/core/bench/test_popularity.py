from __future__ import annotations

import random
from collections import Counter

import pytest

from loramux.bench.popularity import parse_popularity
from loramux.errors import ConfigInvalid


def chosen(text: str, num_requests: int, num_adapters: int, seed: int = 0) -> list[int]:
    return parse_popularity("--popularity", text).choose(num_requests, num_adapters, random.Random(seed))


def test_identical_asks_for_the_first_adapter_alone() -> None:
    assert chosen("identical", 5, 3) == [0, 0, 0, 0, 0]


def test_distinct_lets_the_adapters_take_turns() -> None:
    assert chosen("distinct", 7, 3) == [0, 1, 2, 0, 1, 2, 0]


def test_uniform_asks_for_all_alike() -> None:
    counts = Counter(chosen("uniform", 40_000, 4))

    assert [counts[place] / 40_000 for place in range(4)] == pytest.approx([0.25] * 4, abs=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_zipf_asks_for_each_adapter_in_proportion_to_a_power_of_its_place(alpha: float) -> None:
    counts = Counter(chosen(f"zipf:{alpha}", 100_000, 100))
    total = sum(place**-alpha for place in range(1, 101))

    shares = [counts[place - 1] / 100_000 for place in (1, 2, 5, 100)]
    assert shares == pytest.approx([place**-alpha / total for place in (1, 2, 5, 100)], abs=0.005)


def test_skewed_gives_half_to_the_first_and_the_rest_to_the_others() -> None:
    counts = Counter(chosen("skewed", 50_000, 6))

    assert [counts[place] / 50_000 for place in range(6)] == pytest.approx([0.5, *[0.1] * 5], abs=0.01)


@pytest.mark.parametrize("text", ["identical", "distinct", "uniform", "skewed", "zipf:1"])
def test_a_single_adapter_gets_every_request(text: str) -> None:
    assert chosen(text, 4, 1) == [0, 0, 0, 0]


def test_the_same_seed_chooses_the_same_adapters() -> None:
    assert chosen("zipf:1", 50, 20, seed=1) == chosen("zipf:1", 50, 20, seed=1) != chosen("zipf:1", 50, 20, seed=2)


@pytest.mark.parametrize("text", ["", "zipf", "zipf:", "zipf:0", "zipf:-1", "zipf:inf", "zipf:a", "uniform:3", "other"])
def test_a_popularity_that_is_none_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_popularity("--popularity", text)

    accepted = "identical, distinct, uniform, skewed or zipf:ALPHA with ALPHA above 0"
    assert str(caught.value) == f"--popularity must be {accepted}; got {text!r}"
