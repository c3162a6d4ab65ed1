"""Spans: one for each request for a completion, one for each load of an adapter, made when all is over."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from loramux.lora.hookspecs import AdapterEvent, RequestRecord, hookimpl

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}

Attributes = Mapping[str, str | int | float]


class Spans:
    """A plugin of loramux. Attributes follow OpenTelemetry's conventions for HTTP and for generative AI."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("loramux")

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        """Make the span of a request, below the client's own where it sent one."""
        span = self._tracer.start_span(
            f"POST {record.route}",
            context=_parent(record.traceparent),
            kind=SpanKind.SERVER,
            attributes=_of_request(record),
            start_time=record.started_ns,
        )
        if record.first_token_ns is not None:
            span.add_event("first token", timestamp=record.first_token_ns)
        if record.error_code is not None and (record.status >= 500 or record.status == 200):  # not the client's fault
            span.set_status(Status(StatusCode.ERROR, record.error_code))
        span.end(record.ended_ns)

    @hookimpl
    def adapter_event(self, event: AdapterEvent) -> None:
        """Make the span of a load that succeeded or failed."""
        if event.kind not in ("loaded", "failed"):
            return
        ended_ns = time.time_ns()
        started_ns = ended_ns - int((event.seconds or 0.0) * 1e9)
        span = self._tracer.start_span("load adapter", attributes=_of_adapter(event), start_time=started_ns)
        if event.kind == "failed":
            span.set_status(Status(StatusCode.ERROR, event.reason))
        span.end(ended_ns)


def _parent(traceparent: str | None) -> Context:
    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _of_request(record: RequestRecord) -> Attributes:
    return _known(
        {
            "http.request.method": "POST",
            "http.route": record.route,
            "http.response.status_code": record.status,
            "error.type": record.error_code,
            "gen_ai.operation.name": OPERATIONS.get(record.route),
            "gen_ai.usage.input_tokens": record.num_prompt_tokens,
            "gen_ai.usage.output_tokens": record.num_completion_tokens,
            "enduser.id": record.principal,
            "loramux.request_id": record.request_id,
            "loramux.finish_reason": record.finish_reason,
            "loramux.adapter.name": record.adapter_name,
            "loramux.adapter.id": record.lora_int_id,
            "loramux.adapter.digest": record.digest,
            "loramux.adapter.tier": record.tier,
        }
    )


def _of_adapter(event: AdapterEvent) -> Attributes:
    return _known(
        {
            "loramux.adapter.name": event.adapter_name,
            "loramux.adapter.id": event.lora_int_id,
            "loramux.adapter.digest": event.digest,
        }
    )


def _known(attributes: Mapping[str, str | int | float | None]) -> Attributes:
    return {key: value for key, value in attributes.items() if value is not None}
