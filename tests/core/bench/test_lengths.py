from __future__ import annotations

import random
import statistics

import pytest

from loramux.bench.lengths import parse_lengths
from loramux.errors import ConfigInvalid

NONE = (
    "",
    "0",
    "-1",
    "1.5",
    "²",
    "8:",
    "64:2",
    "normal:4:2",
    "uniform:1",
    "uniform:0:4",
    "uniform:1:2:3",
    "lognormal:8",
)


def drawn(text: str, num: int = 2000, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    lengths = parse_lengths("--prompt-tokens", text)
    return [lengths.draw(source) for _ in range(num)]


def test_a_number_is_every_length() -> None:
    assert set(drawn("64")) == {64}


def test_uniform_lengths_reach_both_ends_and_nothing_beyond() -> None:
    assert set(drawn("uniform:3:6")) == {3, 4, 5, 6}


def test_half_of_the_lognormal_lengths_are_below_the_median() -> None:
    assert statistics.median(drawn("lognormal:100:0.8")) == pytest.approx(100, rel=0.1)


def test_lognormal_lengths_are_at_least_one_and_at_most_the_given_maximum() -> None:
    lengths = drawn("lognormal:2:2:50")

    assert (min(lengths), max(lengths)) == (1, 50)


def test_the_same_seed_draws_the_same_lengths() -> None:
    assert drawn("lognormal:100:1", seed=3) == drawn("lognormal:100:1", seed=3) != drawn("lognormal:100:1", seed=4)


@pytest.mark.parametrize("text", [*NONE, "lognormal:8:0", "lognormal:8:nan", "lognormal:8:inf", "lognormal:8:1:0"])
def test_a_length_that_is_none_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_lengths("--prompt-tokens", text)

    assert str(caught.value) == (
        f"--prompt-tokens must be a number of tokens, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX]; got {text!r}"
    )


def test_a_range_that_goes_down_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="with LOW at most HIGH; got 'uniform:8:4'"):
        parse_lengths("--output-tokens", "uniform:8:4")
