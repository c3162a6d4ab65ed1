from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest

from loramux.bench.lengths import parse_lengths
from loramux.bench.popularity import Popularity
from loramux.bench.workload import Workload, with_arrivals


def workload(**changes: object) -> Workload:
    options: dict[str, object] = {
        "num_requests": 6,
        "prompt_lengths": parse_lengths("", "uniform:4:9"),
        "output_lengths": parse_lengths("", "uniform:2:5"),
        "popularity": Popularity("distinct"),
        **changes,
    }
    return Workload(**options)  # type: ignore[arg-type]


def test_the_same_seed_makes_the_same_requests() -> None:
    again = [workload(seed=seed).requests(["a"], vocab_size=50, run="1") for seed in (1, 1, 2)]

    assert again[0] == again[1] != again[2]


def test_requests_are_as_long_as_asked_and_inside_the_vocabulary() -> None:
    requests = workload(num_requests=200).requests(["a"], vocab_size=50, run="1")

    assert {len(request.prompt) for request in requests} == {4, 5, 6, 7, 8, 9}
    assert {request.max_tokens for request in requests} == {2, 3, 4, 5}
    assert {token_id for request in requests for token_id in request.prompt} == set(range(50))


def test_the_shared_prefix_comes_in_front_of_every_prompt_and_nothing_else_is_shared() -> None:
    requests = workload(shared_prefix_tokens=8).requests(["a"], vocab_size=1000, run="1")

    assert len({request.prompt[:8] for request in requests}) == 1
    assert len({request.prompt[8] for request in requests}) > 1
    assert all(12 <= len(request.prompt) <= 17 for request in requests)


def test_another_run_has_other_prompts_of_the_same_lengths_behind_the_same_prefix() -> None:
    one, other = (workload(shared_prefix_tokens=3).requests(["a"], vocab_size=1000, run=run) for run in ("1", "2"))

    assert [len(request.prompt) for request in one] == [len(request.prompt) for request in other]
    assert one[0].prompt[:3] == other[0].prompt[:3]
    assert not {request.prompt for request in one} & {request.prompt for request in other}


def test_what_warms_up_is_no_prompt_of_the_run() -> None:
    load = workload()

    warm_up = load.warm_up(["a", "b"], 2, vocab_size=1000, run="1")

    assert [request.adapter for request in warm_up] == ["a", "b"]
    assert not {request.prompt for request in warm_up} & {
        request.prompt for request in load.requests(["a", "b"], vocab_size=1000, run="1")
    }


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    requests = workload(num_requests=4000).requests(["a"], vocab_size=50, run="1")

    arriving = with_arrivals(requests, request_rate=5.0, seed=0)

    gaps = [later.due_seconds - earlier.due_seconds for earlier, later in pairwise(arriving)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.05)
    assert with_arrivals(requests, request_rate=5.0, seed=0) == arriving


def test_at_an_infinite_rate_all_are_due_at_once() -> None:
    requests = workload().requests(["a"], vocab_size=50, run="1")

    assert {request.due_seconds for request in with_arrivals(requests, request_rate=math.inf, seed=0)} == {0.0}
