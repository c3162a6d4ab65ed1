from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from loramux.adapters.resolution import TraceStep
from loramux.metrics.metrics import Metrics
from loramux.metrics.request_series import FinishedCompletion
from loramux.metrics.state import EngineState, ServerState, TierState

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def completion(adapter_name: str | None = "sql", **changes: Any) -> FinishedCompletion:
    given: dict[str, Any] = {
        "has_model": True,
        "adapter_name": adapter_name,
        "finish_reason": "stop",
        "status": 200,
        "error_code": "",
        "seconds": 1.0,
        **changes,
    }
    return FinishedCompletion(**given)


def server_state(**engine: Any) -> ServerState:
    return ServerState(base_model_name="tiny", engine=EngineState(**engine))


def samples(metrics: Metrics, state: ServerState | None = None) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    families = metrics.families(state or server_state())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_a_completion_is_counted_under_its_adapter_with_all_its_times_and_tokens() -> None:
    metrics = Metrics()

    metrics.requests.count_completion(
        completion(
            queue_seconds=0.5,
            first_token_seconds=0.75,
            inter_token_seconds=[0.25, 0.5],
            num_prompt_tokens=7,
            num_cached_tokens=4,
            num_completion_tokens=3,
        )
    )

    found = samples(metrics)
    assert found["loramux:requests_total", "sql", "stop", "200", ""] == 1
    assert found["loramux:request_queue_seconds_sum", "sql"] == 0.5
    assert found["loramux:time_to_first_token_seconds_sum", "sql"] == 0.75
    assert found["loramux:inter_token_latency_seconds_count", "sql"] == 2
    assert found["loramux:inter_token_latency_seconds_sum", "sql"] == 0.75
    assert found["loramux:request_latency_seconds_sum", "sql"] == 1
    assert found["loramux:prompt_tokens_total", "sql"] == 7
    assert found["loramux:cached_prompt_tokens_total", "sql"] == 4
    assert found["loramux:generation_tokens_total", "sql"] == 3


def test_the_base_and_requests_without_a_model_have_labels_of_their_own() -> None:
    metrics = Metrics()

    metrics.requests.count_completion(completion(None))
    metrics.requests.count_completion(completion(None, has_model=False, status=404, error_code="model_not_found"))

    found = samples(metrics)
    assert found["loramux:requests_total", "base", "stop", "200", ""] == 1
    assert found["loramux:requests_total", "none", "stop", "404", "model_not_found"] == 1


def test_the_number_of_adapter_labels_is_bounded_and_no_request_is_lost() -> None:
    metrics = Metrics()

    for number in range(1_500):
        metrics.requests.count_completion(completion(f"adapter-{number}"))

    counts = {key[1]: value for key, value in samples(metrics).items() if key[0] == "loramux:requests_total"}
    assert len(counts) == 1_001
    assert counts["other"] == 500
    assert sum(counts.values()) == 1_500


def test_a_method_that_a_client_made_up_becomes_no_label() -> None:
    metrics = Metrics()

    metrics.requests.count_http("SECRET", "-", 405)

    assert samples(metrics)["loramux:http_requests_total", "other", "-", "405"] == 1


def test_routers_find_which_adapters_run_and_wait_in_one_series() -> None:
    state = server_state(max_loras=4, running_adapters=("a", "b"), waiting_adapters=("b", "c"))

    (info,) = [family for family in Metrics().families(state) if family.name == "vllm:lora_requests_info"]

    (sample,) = info.samples
    assert sample.labels == {"max_lora": "4", "running_lora_adapters": "a,b", "waiting_lora_adapters": "b,c"}


def test_routers_find_the_load_under_the_names_they_know() -> None:
    found = samples(Metrics(), server_state(num_running=2, num_waiting=3, kv_usage=0.25))

    assert found["vllm:num_requests_running", "tiny"] == 2
    assert found["vllm:num_requests_waiting", "tiny"] == 3
    assert found["vllm:kv_cache_usage_perc", "tiny"] == 0.25


def test_a_resolver_that_was_not_asked_took_no_time() -> None:
    metrics = Metrics()

    metrics.adapters.count_step(TraceStep("s3", "not asked", "", 0.0))
    metrics.adapters.count_step(TraceStep("s3", "found", "", 250.0))

    found = samples(metrics)
    assert found["loramux:resolver_verdicts_total", "s3", "not asked"] == 1
    assert found["loramux:resolver_seconds_count", "s3"] == 1
    assert found["loramux:resolver_seconds_sum", "s3"] == 0.25


def test_a_server_without_a_store_says_nothing_of_the_disk() -> None:
    without = samples(Metrics())
    engine = EngineState()
    disk = TierState(num_adapters=2, nbytes=10, num_evictions=1)
    with_store = samples(Metrics(), ServerState(base_model_name="tiny", engine=engine, disk=disk))

    assert ("loramux:store_bytes",) not in without
    assert with_store["loramux:store_bytes",] == 10
    assert with_store["loramux:resident_adapters", "disk"] == 2
    assert with_store["loramux:adapter_evictions_total", "disk"] == 1


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html", "text/plain;version=1.0.0"])
def test_the_text_format_is_what_everybody_gets(accept: str) -> None:
    exposition = Metrics().expose(server_state(), accept)

    assert exposition.content_type.startswith("text/plain; version=")
    assert list(parse_text(exposition.body.decode()))


def test_openmetrics_is_for_those_who_ask() -> None:
    metrics = Metrics()
    metrics.requests.count_completion(completion('a"quoted\\name'))

    exposition = metrics.expose(server_state(num_running=1), OPENMETRICS)

    assert exposition.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(exposition.body.decode())}
    assert families["loramux:requests"].samples[0].labels["adapter"] == 'a"quoted\\name'


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=nonsense",
        "text/plain;version=x.y",
        "text/plain;version=1.0.0;escaping=nonsense",
        "application/openmetrics-text;version=1.0.0;escaping=nonsense",
        ";;;,,,",
    ],
)
def test_a_format_that_nobody_has_heard_of_is_answered_all_the_same(accept: str) -> None:
    assert Metrics().expose(server_state(), accept).body
