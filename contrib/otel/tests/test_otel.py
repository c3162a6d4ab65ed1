"""Spans of a real server, read from OpenTelemetry's own exporter in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from loramux import AsyncLLMEngine
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from loramux_otel import Spans, plugin
from loramux_otel.exporting import exporter_names, make_provider
from plugin_cases import TableResolver, active, entry_point
from served_engine import ServedEngine, serve_engine
from tiny_engines import engine_args
from tiny_models import build_adapter, build_model

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("otel") / "tiny-llama")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return build_adapter(model, model.parent / "sql")


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def served(model: Path, adapter: Path, exported: InMemorySpanExporter) -> AsyncIterator[ServedEngine]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    plugins = PluginManager.start(PluginConfig(), [entry_point("otel", Spans(provider))])
    engine = AsyncLLMEngine.from_engine_args(engine_args(model))
    resolver = TableResolver({"sql": str(adapter), "broken": str(model)})
    async with serve_engine(engine, model, resolvers=[active(resolver)], hooks=plugins.hooks) as served:
        yield served
    engine.shutdown()
    plugins.close()


async def complete(served: ServedEngine, headers: dict[str, str] | None = None, **body: Any) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{served.url}/v1/completions", json={"prompt": "hi", "max_tokens": 3, **body}, headers=headers
        ) as response,
    ):
        await response.read()
        return response.status


def spans_named(exported: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exported.get_finished_spans() if span.name == name]


async def test_a_request_is_a_span_below_the_clients_own(served: ServedEngine, exported: InMemorySpanExporter) -> None:
    await complete(served, {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "order-66"}, model="sql")

    (span,) = spans_named(exported, "POST /v1/completions")
    (loaded,) = served.registry.adapters()
    assert span.kind is SpanKind.SERVER
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "loramux.request_id": "order-66",
        "loramux.finish_reason": "length",
        "loramux.adapter.name": "sql",
        "loramux.adapter.id": loaded.id,
        "loramux.adapter.digest": loaded.digest,
        "loramux.adapter.tier": "disk",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_the_first_token_lies_between_the_beginning_and_the_end(
    served: ServedEngine, exported: InMemorySpanExporter
) -> None:
    await complete(served)

    (span,) = spans_named(exported, "POST /v1/completions")
    (event,) = span.events
    assert event.name == "first token"
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < event.timestamp < span.end_time


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{'0' * 16}-01", "ü" * 99])
async def test_a_header_that_names_no_trace_begins_a_new_one(
    served: ServedEngine, exported: InMemorySpanExporter, traceparent: str
) -> None:
    assert await complete(served, {"traceparent": traceparent}) == 200

    (span,) = spans_named(exported, "POST /v1/completions")
    assert span.parent is None


async def test_a_load_is_a_span_as_long_as_it_took(served: ServedEngine, exported: InMemorySpanExporter) -> None:
    await complete(served, model="sql")

    (span,) = spans_named(exported, "load adapter")
    (loaded,) = served.registry.adapters()
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(loaded.load_seconds, abs=1e-6)
    assert dict(span.attributes or {}) == {
        "loramux.adapter.name": "sql",
        "loramux.adapter.id": loaded.id,
        "loramux.adapter.digest": loaded.digest,
    }


async def test_failures_say_whose_fault_they_are(served: ServedEngine, exported: InMemorySpanExporter) -> None:
    assert await complete(served, model="nobody") == 404
    assert await complete(served, model="broken") == 400

    for span in spans_named(exported, "POST /v1/completions"):
        assert span.status.status_code is StatusCode.UNSET  # the server is well
    types = [(span.attributes or {})["error.type"] for span in spans_named(exported, "POST /v1/completions")]
    assert types == ["model_not_found", "adapter_invalid"]


async def test_prompts_are_in_no_span(served: ServedEngine, exported: InMemorySpanExporter) -> None:
    await complete(served, prompt="canary", model="sql")

    assert "canary" not in "".join(span.to_json() for span in exported.get_finished_spans())


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, []),
    ],
)
def test_the_environment_says_where_spans_go(environment: dict[str, str], names: list[str]) -> None:
    assert exporter_names(environment) == names


def test_spans_are_from_loramux_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_provider({}).resource.attributes["service.name"] == "loramux"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    assert make_provider({}).resource.attributes["service.name"] == "shop"


def test_an_exporter_that_is_not_installed_is_said_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    make_provider({"OTEL_TRACES_EXPORTER": "carrier-pigeon"})

    assert "'carrier-pigeon', which is not installed; installed: " in caplog.text


def test_it_is_found_through_its_entry_point() -> None:
    (found,) = entry_points(group="loramux", name="otel")
    assert found.load() is plugin
