"""Where spans go: to what the OTEL_* environment names, and nowhere while it names nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

EXPORTERS = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE_NAME = "loramux"

_UNNAMED = "unknown_service"  # with the program's name, where nobody has given one
_ENTRY_POINT_GROUP = "opentelemetry_traces_exporter"
_NAMES = {"otlp": "otlp_proto_http"}  # the one that comes with this plugin

logger = logging.getLogger(__name__)


def make_provider(environment: Mapping[str, str]) -> TracerProvider:
    """Build what exports spans; whatever else the environment says (sampler, headers, service) the SDK reads itself."""
    resource = Resource.create()
    if str(resource.attributes.get("service.name", _UNNAMED)).startswith(_UNNAMED):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource)
    for name in exporter_names(environment):
        exporter = _make_exporter(name)
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def exporter_names(environment: Mapping[str, str]) -> list[str]:
    """Say which exporters are wanted: without a word about it, OTLP if there is an endpoint for it."""
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    names = [name.strip() for name in (environment.get(EXPORTERS) or default).split(",")]
    return [name for name in names if name not in ("", "none")]


def _make_exporter(name: str) -> SpanExporter | None:
    found = list(entry_points(group=_ENTRY_POINT_GROUP, name=_NAMES.get(name, name)))
    if not found:
        known = ", ".join(sorted({entry_point.name for entry_point in entry_points(group=_ENTRY_POINT_GROUP)}))
        logger.error("%s names %r, which is not installed; installed: %s", EXPORTERS, name, known)
        return None
    make: Callable[[], Any] = found[0].load()
    exporter: SpanExporter = make()
    logger.info("spans are exported exporter=%s", found[0].name)
    return exporter
