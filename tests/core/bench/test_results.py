from __future__ import annotations

import pytest

from loramux.bench.results import Outcome, Percentiles, RequestResult, Run, faults, requests_per_adapter


def result(number: int = 0, outcome: Outcome = "ok", **changes: object) -> RequestResult:
    options: dict[str, object] = {
        "number": number,
        "adapter": None,
        "outcome": outcome,
        "due_seconds": 0.0,
        "ttft_seconds": 1.0,
        "latency_seconds": 3.0,
        "inter_token_seconds": [1.0, 1.0],
        "num_prompt_tokens": 4,
        "num_asked_tokens": 3,
        "num_output_tokens": 3,
        **changes,
    }
    return RequestResult(**options)  # type: ignore[arg-type]


def test_percentiles_lie_between_the_nearest_values() -> None:
    percentiles = Percentiles.of([float(number) for number in range(101)])

    assert percentiles == Percentiles(50.0, 90.0, 99.0)
    assert Percentiles.of([7.0]) == Percentiles(7.0, 7.0, 7.0)
    assert Percentiles.of([]) is None


def test_speed_counts_only_what_went_well_over_all_of_the_time() -> None:
    results = [result(), result(1), result(2, "wrong_count"), result(3, "refused"), result(4, "failed")]

    summary = Run(num_adapters=0, seconds=2.0, results=results).summary()

    assert (summary.num_requests, summary.num_ok) == (5, 2)
    assert (summary.num_wrong_count, summary.num_refused, summary.num_failed) == (1, 1, 1)
    assert (summary.output_tokens_per_second, summary.requests_per_second) == (3.0, 1.0)


def test_a_run_in_which_nothing_went_well_has_no_times() -> None:
    summary = Run(num_adapters=0, seconds=2.0, results=[result(0, "failed", ttft_seconds=None)]).summary()

    assert summary.ttft_seconds is summary.latency_seconds is summary.inter_token_seconds is None


def test_an_answer_without_a_visible_piece_has_no_time_to_its_first() -> None:
    results = [result(), result(1, ttft_seconds=None, inter_token_seconds=[])]

    summary = Run(num_adapters=0, seconds=1.0, results=results).summary()

    assert summary.ttft_seconds == Percentiles(1.0, 1.0, 1.0)
    assert summary.latency_seconds == Percentiles(3.0, 3.0, 3.0)


def test_requests_are_counted_by_adapter_and_faults_by_what_they_say() -> None:
    results = [result(adapter="a"), result(adapter="a"), result(), result(outcome="failed", error="500")]

    assert requests_per_adapter(results) == {"a": 2, "base": 2}
    assert faults([Run(num_adapters=1, seconds=1.0, results=results)] * 2) == ["2 x 500"]


def test_the_latency_is_in_seconds_of_the_request_alone() -> None:
    run = Run(num_adapters=0, seconds=9.0, results=[result(latency_seconds=float(number)) for number in range(1, 4)])

    assert run.summary().latency_seconds == pytest.approx(Percentiles(2.0, 2.8, 2.98))
