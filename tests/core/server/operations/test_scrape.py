from __future__ import annotations

import asyncio

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from loramux.metrics.metrics import Metrics


async def scrape(client) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value for family in parse_text(text) for sample in family.samples
    }


def requests_of(samples: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """The requests by adapter, error code, finish reason and status: labels come sorted by their names."""
    return {key[1:]: value for key, value in samples.items() if key[0] == "loramux:requests_total"}


async def test_both_formats_are_read_by_prometheus_own_parsers(client) -> None:
    await client.complete(model="found/sql")

    text = await client.get("/metrics")
    openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert text.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    names = {family.name for family in parse_text(text.text)}
    assert {family.name for family in parse_openmetrics(openmetrics.text)} >= {"loramux:requests"}
    assert {"loramux:requests", "vllm:num_requests_running", "vllm:lora_requests_info"} <= names


async def test_requests_are_counted_by_adapter_and_by_how_they_ended(client) -> None:
    await client.complete(model="found/sql", max_tokens=2)
    await client.chat(model="found/sql", stream=True)
    await client.complete(model="llama")
    await client.complete(model="found/sql", max_tokens=10_000)
    await client.complete(model="down/x")

    assert requests_of(await scrape(client)) == {
        ("found/sql", "", "length", "200"): 1,
        ("found/sql", "", "stop", "200"): 1,
        ("base", "", "stop", "200"): 1,
        ("found/sql", "context_length_exceeded", "error", "400"): 1,
        ("none", "adapter_source_unavailable", "error", "503"): 1,
    }


async def test_tokens_are_counted_as_usage_tells_them(client) -> None:
    usage = (await client.complete(model="found/sql", prompt=["hi", "there"], n=2)).json["usage"]

    samples = await scrape(client)
    assert samples["loramux:prompt_tokens_total", "found/sql"] == usage["prompt_tokens"]
    assert samples["loramux:generation_tokens_total", "found/sql"] == usage["completion_tokens"]
    assert samples["loramux:cached_prompt_tokens_total", "found/sql"] == 2


async def test_a_stream_that_breaks_is_counted_with_its_error(client, engine) -> None:
    engine.fail_after, engine.failure = 2, RuntimeError("oops")

    await client.complete(stream=True)

    assert requests_of(await scrape(client)) == {("base", "internal_error", "error", "200"): 1}


async def test_a_client_that_leaves_is_counted_as_gone(client, engine) -> None:
    engine.hold_after = 1
    call = asyncio.create_task(client.complete())
    await engine.reached_gate.wait()
    call.cancel()
    await engine.left.wait()

    assert requests_of(await scrape(client)) == {("base", "", "disconnected", "499"): 1}


async def test_no_name_that_was_never_valid_becomes_a_label(client) -> None:
    for name in ("secret", "down/secret", "../secret", "secret\n", "x" * 999, "found/../secret"):
        await client.complete(model=name)
        await client.get(f"/v1/models/{name}")
    await client.request("SECRET", "/secret?secret")

    text = (await client.get("/metrics")).text

    assert "secret" not in text.lower()
    assert {key[0] for key in requests_of(await scrape(client))} == {"none"}


async def test_http_requests_are_counted_by_route_and_status(client) -> None:
    await client.get("/v1/models/nobody")
    await client.get("/nowhere")

    samples = await scrape(client)
    assert samples["loramux:http_requests_total", "GET", "/v1/models/{model}", "404"] == 1
    assert samples["loramux:http_requests_total", "GET", "-", "404"] == 1


async def test_resolvers_are_counted_by_what_they_said(client) -> None:
    for name in ("found/sql", "nobody", "nobody", "down/x"):
        await client.complete(model=name)

    samples = await scrape(client)
    verdicts = {key[2]: value for key, value in samples.items() if key[0] == "loramux:resolver_verdicts_total"}
    assert verdicts == {"found": 1, "not found": 2, "failed": 1}
    assert samples["loramux:resolver_seconds_count", "found"] == 4


async def test_a_scrape_waits_for_the_one_before_and_nobody_else_does(client, metrics: Metrics) -> None:
    async with metrics.turn_to_expose:
        scrape = asyncio.create_task(client.get("/metrics"))
        assert [(await client.get("/health")).status for _ in range(20)] == [200] * 20
        assert not scrape.done()

    assert (await scrape).status == 200
