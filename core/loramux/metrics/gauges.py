"""The figures that are read when somebody asks for them: a ServerState as metric families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import time

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from loramux.metrics.state import EngineState, ServerState


def gauges(state: ServerState) -> Iterator[Metric]:
    """Say what a state comes to."""
    yield from _for_routers(state.base_model_name, state.engine)
    yield from _adapters(state)
    yield from _engine(state.engine)
    yield _gauge("loramux:requests_in_flight", "Completion requests being answered.", state.num_in_flight)


def _for_routers(base_model_name: str, engine: EngineState) -> Iterator[Metric]:
    """Under vLLM's names, as routers between replicas read them."""
    for name, text, value in (
        ("vllm:num_requests_running", "Sequences in the running batch.", engine.num_running),
        ("vllm:num_requests_waiting", "Sequences and requests that wait for room or an adapter.", engine.num_waiting),
        ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, from 0 to 1.", engine.kv_usage),
    ):
        family = GaugeMetricFamily(name, text, labels=("model_name",))
        family.add_metric((base_model_name,), value)
        yield family
    info = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "Which adapters run and which wait, joined by commas; the value is the Unix time of this look.",
        labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    )
    running, waiting = ",".join(engine.running_adapters), ",".join(engine.waiting_adapters)
    info.add_metric((str(engine.max_loras), running, waiting), time())
    yield info


def _adapters(state: ServerState) -> Iterator[Metric]:
    engine = state.engine
    yield _gauge("loramux:served_adapters", "Adapter names that are answered for.", state.num_served_adapters)
    yield _gauge("loramux:loading_adapters", "Names being found, fetched or loaded.", state.num_loading_adapters)
    tiers = {"slot": engine.slots, "host": engine.host}
    if state.disk is not None:
        tiers["disk"] = state.disk
        yield _gauge("loramux:store_bytes", "Bytes of the store of fetched adapters.", state.disk.nbytes)
    adapters: dict[str, float] = {tier: held.num_adapters for tier, held in tiers.items()}
    nbytes: dict[str, float] = {tier: held.nbytes for tier, held in tiers.items()}
    pinned: dict[str, float] = {tier: held.num_pinned for tier, held in tiers.items() if tier != "disk"}
    yield _gauge_by("tier", "loramux:resident_adapters", "Adapters in a tier.", adapters)
    yield _gauge_by("tier", "loramux:resident_adapter_bytes", "Bytes of the adapters in a tier.", nbytes)
    yield _gauge_by("tier", "loramux:pinned_adapters", "Adapters that never leave a tier.", pinned)
    yield _gauge("loramux:slots", "Adapter slots on the device.", engine.max_loras)
    yield _gauge("loramux:slots_in_use", "Slots whose adapter some sequence uses now.", engine.num_slots_in_use)
    yield _gauge("loramux:adapter_leases", "Requests that hold an adapter in host memory.", engine.num_leases)
    evictions = CounterMetricFamily(
        "loramux:adapter_evictions", "Adapters that left a tier for another one.", labels=("tier",)
    )
    for tier, held in tiers.items():
        evictions.add_metric((tier,), held.num_evictions)
    yield evictions
    yield _gauge_by(
        "resolver", "loramux:resolver_pause_seconds", "For how long a failing resolver is left alone.", state.sources
    )


def _engine(engine: EngineState) -> Iterator[Metric]:
    for name, text, value in (
        ("loramux:engine_steps", "Steps that the engine has begun.", engine.num_steps),
        ("loramux:engine_tokens", "Tokens of prompts and answers that it has computed.", engine.num_computed_tokens),
        ("loramux:preemptions", "Sequences that lost their KV blocks, to be computed again.", engine.num_preemptions),
        ("loramux:prefix_cache_query_tokens", "Prompt tokens looked up.", engine.num_prefix_query_tokens),
        ("loramux:prefix_cache_hit_tokens", "Prompt tokens found, not computed.", engine.num_prefix_hit_tokens),
    ):
        yield CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauge_by(label: str, name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
