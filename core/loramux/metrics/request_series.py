"""RequestSeries: what is counted and measured of each request, when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from loramux.metrics.adapter_labels import BASE, NONE, AdapterLabels

QUEUE_BUCKETS = (0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
LATENCY_BUCKETS = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCompletion:
    """One request for a completion, as it went; None is what it never came to.

    `adapter_name` is None for the base model; `has_model` is false when the request ended before its model was known.
    `inter_token_seconds` has one entry per token but the first.
    """

    has_model: bool
    adapter_name: str | None
    finish_reason: str
    status: int
    error_code: str
    seconds: float
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    inter_token_seconds: Sequence[float] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0


class RequestSeries:
    """For the event loop's thread; a scrape may read at any time."""

    def __init__(self, registry: CollectorRegistry, labels: AdapterLabels) -> None:
        self._labels = labels
        self._http = Counter(
            "loramux:http_requests",
            "HTTP requests, by the route that answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._requests = Counter(
            "loramux:requests",
            "Completion requests by how they ended; code is empty where nothing failed.",
            ("adapter", "finish_reason", "status", "code"),
            registry=registry,
        )
        self._prompt_tokens = _counter(registry, "loramux:prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = _counter(registry, "loramux:cached_prompt_tokens", "Those taken from the prefix cache.")
        self._generation_tokens = _counter(registry, "loramux:generation_tokens", "Tokens of answers.")
        self._queue = _histogram(
            registry,
            "loramux:request_queue_seconds",
            "From the engine's inbox to the first step.",
            QUEUE_BUCKETS,
        )
        self._first_token = _histogram(
            registry,
            "loramux:time_to_first_token_seconds",
            "From the HTTP request to its first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._inter_token = _histogram(
            registry,
            "loramux:inter_token_latency_seconds",
            "Between one token and the next.",
            INTER_TOKEN_BUCKETS,
        )
        self._latency = _histogram(
            registry,
            "loramux:request_latency_seconds",
            "From the HTTP request to the end of its answer.",
            LATENCY_BUCKETS,
        )

    def count_http(self, method: str, route: str, status: int) -> None:
        """Count any request; `route` is a template, never an address."""
        self._http.labels(method if method in _METHODS else "other", route, str(status)).inc()

    def count_completion(self, completion: FinishedCompletion) -> None:
        """Count a request for a completion, whatever came of it."""
        adapter = self._label(completion)
        end = (completion.finish_reason, str(completion.status), completion.error_code)
        self._requests.labels(adapter, *end).inc()
        self._latency.labels(adapter).observe(completion.seconds)
        if completion.queue_seconds is not None:
            self._queue.labels(adapter).observe(completion.queue_seconds)
        if completion.first_token_seconds is not None:
            self._first_token.labels(adapter).observe(completion.first_token_seconds)
        if completion.inter_token_seconds:
            inter_token = self._inter_token.labels(adapter)
            for seconds in completion.inter_token_seconds:
                inter_token.observe(seconds)
        if completion.num_prompt_tokens:
            self._prompt_tokens.labels(adapter).inc(completion.num_prompt_tokens)
            self._cached_tokens.labels(adapter).inc(completion.num_cached_tokens)
            self._generation_tokens.labels(adapter).inc(completion.num_completion_tokens)

    def _label(self, completion: FinishedCompletion) -> str:
        if not completion.has_model:
            return NONE
        return BASE if completion.adapter_name is None else self._labels.label_of(completion.adapter_name)


def _counter(registry: CollectorRegistry, name: str, text: str) -> Counter:
    return Counter(name, text, ("adapter",), registry=registry)


def _histogram(registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float]) -> Histogram:
    return Histogram(name, text, ("adapter",), buckets=buckets, registry=registry)
