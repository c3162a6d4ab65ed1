"""What Prometheus reads is what happened: real requests for several adapters, and every documented metric."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from openai import AsyncOpenAI, OpenAI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from loramux import AsyncLLMEngine
from loramux.metrics.metrics import Metrics
from served import serving
from served_engine import ServedEngine, serve_engine
from tiny_engines import engine_args, kv_bytes

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
NAMES = ("left", "right", "third")
SECONDS = 20.0
ONLY_WITH_A_STORE = {"loramux:store_bytes", "loramux:resolver_verdicts_total", "loramux:resolver_seconds"}

Samples = dict[tuple[str, ...], float]


@pytest.fixture
async def served(tiny_llama: Path, make_adapter: Callable[..., Path]) -> AsyncIterator[ServedEngine]:
    metrics = Metrics()
    engine = AsyncLLMEngine.from_engine_args(
        engine_args(tiny_llama, max_loras=1, kv_cache_memory_bytes=kv_bytes(512)),
        on_adapter_load=metrics.adapters.observe_load,
    )
    async with serve_engine(engine, tiny_llama, metrics=metrics) as served:
        for seed, name in enumerate(NAMES):
            await served.registry.add(name, str(make_adapter(f"metrics/{name}", seed=seed)), origin="static")
        yield served
    engine.shutdown()


@pytest.fixture
async def client(served: ServedEngine) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        yield client


async def scrape(served: ServedEngine, accept: str = "") -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{served.url}/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        return await response.text()


async def samples(served: ServedEngine) -> Samples:
    """Every sample, by its name and the values of its labels, which come sorted by their names."""
    families = parse_text(await scrape(served))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


async def complete(client: AsyncOpenAI, model: str, *, prompt: str = "abcdefghi", max_tokens: int = 5) -> None:
    await client.completions.create(model=model, prompt=prompt, max_tokens=max_tokens, extra_body={"ignore_eos": True})


async def test_every_documented_metric_is_there_after_traffic(served: ServedEngine, client: AsyncOpenAI) -> None:
    for name in (*NAMES, "tiny"):
        await complete(client, name)

    documented = set(re.findall(r"^\| `(\w+:\w+)` \|", DOCS.read_text(), re.MULTILINE))
    openmetrics = await scrape(served, "application/openmetrics-text; version=1.0.0")
    for families in (parse_text(await scrape(served)), parse_openmetrics(openmetrics)):
        found = {family.name + ("_total" if family.type == "counter" else "") for family in families if family.samples}
        assert documented - found <= ONLY_WITH_A_STORE | {"loramux:resolver_pause_seconds"}


async def test_requests_times_and_tokens_are_those_of_each_adapter(served: ServedEngine, client: AsyncOpenAI) -> None:
    for name, num_requests in (("left", 2), ("right", 1), ("tiny", 1)):
        for _ in range(num_requests):
            await complete(client, name)

    found = await samples(served)
    for adapter, num_requests in (("left", 2), ("right", 1), ("base", 1)):
        assert found["loramux:requests_total", adapter, "", "length", "200"] == num_requests
        assert found["loramux:generation_tokens_total", adapter] == 5 * num_requests
        assert found["loramux:inter_token_latency_seconds_count", adapter] == 4 * num_requests
        for name in ("request_queue_seconds", "time_to_first_token_seconds", "request_latency_seconds"):
            assert found[f"loramux:{name}_count", adapter] == num_requests
        parts = ("request_queue_seconds", "inter_token_latency_seconds")
        assert (
            sum(found[f"loramux:{name}_sum", adapter] for name in parts)
            <= (found["loramux:request_latency_seconds_sum", adapter])
        )
    assert found["loramux:cached_prompt_tokens_total", "left"] == 8  # two blocks of its second prompt
    assert found["loramux:prefix_cache_hit_tokens_total",] == 8


async def test_memory_slots_and_loads_are_those_of_the_engine(served: ServedEngine, client: AsyncOpenAI) -> None:
    for name in NAMES:
        await complete(client, name)

    found = await samples(served)
    assert found["loramux:served_adapters",] == 3
    assert found["loramux:resident_adapters", "host"] == 3
    assert found["loramux:resident_adapters", "slot"] == found["loramux:slots",] == 1
    assert found["loramux:resident_adapter_bytes", "host"] == 3 * found["loramux:resident_adapter_bytes", "slot"] > 0
    assert found["loramux:adapter_evictions_total", "slot"] == 2
    assert found["loramux:adapter_load_seconds_count", "disk_to_host"] == 3
    assert found["loramux:adapter_load_seconds_count", "host_to_slot"] == 3
    assert found["loramux:engine_steps_total",] == 15
    assert found["vllm:num_requests_running", "tiny"] == found["vllm:num_requests_waiting", "tiny"] == 0


async def test_routers_see_one_adapter_run_while_another_waits(served: ServedEngine, client: AsyncOpenAI) -> None:
    calls = [asyncio.create_task(complete(client, name, max_tokens=400)) for name in ("left", "right")]
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                (info,) = [key for key in await samples(served) if key[0] == "vllm:lora_requests_info"]
                _, max_lora, running, waiting = info
                if running and waiting:
                    break
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    assert max_lora == "1"
    assert {running, waiting} == {"left", "right"}


def test_a_server_of_its_own_measures_an_adapter_on_its_whole_way(
    tiny_llama: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shelf = make_adapter("way/sql").parent
    arguments = ("--enable-lora", "--dtype", "float32", "--served-model-name", "tiny", "--base-match", "off")
    sources = ("--lora-resolvers", "fsspec", "--resolver-option", f"fsspec.url=file://{shelf}/{{lora_name}}")
    store = ("--store", str(tmp_path / "store"))
    with serving(str(tiny_llama), *arguments, *sources, *store, log=tmp_path / "log") as served:
        with OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
            client.completions.create(model="sql", prompt="hi", max_tokens=2)
        text, ready, asked = (read(f"{served.url}/{path}") for path in ("metrics", "health/ready", "health/sources"))

    found = {(sample.name, *sample.labels.values()): sample.value for sample in all_samples(text)}
    for transition in ("source_to_disk", "disk_to_host", "host_to_slot"):
        assert found["loramux:adapter_load_seconds_count", transition] == 1
    assert found["loramux:resolver_verdicts_total", "fsspec", "found"] == 1
    assert found["loramux:resolver_pause_seconds", "fsspec"] == 0
    for tier in ("slot", "host", "disk"):
        assert found["loramux:resident_adapters", tier] == 1
    assert found["loramux:store_bytes",] == found["loramux:resident_adapter_bytes", "disk"] > 0
    assert ready == ""
    assert json.loads(asked) == {"sources": [{"name": "fsspec", "state": "asked", "retry_after_seconds": 0}]}


def read(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return response.read().decode()


def all_samples(text: str) -> list[Sample]:
    return [sample for family in parse_text(text) for sample in family.samples]
