from __future__ import annotations

import asyncio

from loramux.lora.hookspecs import RequestRecord, hookimpl
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.principal import Principal
from plugin_cases import entry_point


class Reader:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        self.records.append(record)
        raise RuntimeError("a plugin's own fault")


async def started(start, **settings):
    reader = Reader()
    hooks = PluginManager.start(PluginConfig(), [entry_point("reader", reader)]).hooks
    return await start(hooks=hooks, **settings), reader.records


async def test_plugins_are_told_what_a_request_was_and_took(start) -> None:
    client, records = await started(start, api_keys=ApiKeys.from_keys(["key"]))
    headers = {"Authorization": "Bearer key", "X-Request-Id": "order-66", "traceparent": "00-1-2-03"}

    reply = await client.post("/v1/completions", {"prompt": "hi", "model": "found/sql"}, headers=headers)

    (record,) = records
    (served,) = client.server.registry.adapters()
    assert (record.adapter_name, record.lora_int_id, record.digest) == ("found/sql", served.id, served.digest)
    assert (record.request_id, record.route, record.status) == ("order-66", "/v1/completions", 200)
    assert (record.finish_reason, record.error_code, record.traceparent) == ("stop", None, "00-1-2-03")
    assert record.num_prompt_tokens == reply.json["usage"]["prompt_tokens"]
    assert record.num_completion_tokens == reply.json["usage"]["completion_tokens"]
    assert record.principal is not None
    assert record.principal.startswith("key-")
    assert record.started_ns < record.ended_ns


async def test_plugins_are_told_of_requests_that_failed(start) -> None:
    client, records = await started(start)

    await client.complete(model="nobody")
    await client.chat(max_tokens=1_000)

    assert [(record.status, record.error_code, record.adapter_name) for record in records] == [
        (404, "model_not_found", None),
        (400, "context_length_exceeded", None),
    ]
    assert {record.finish_reason for record in records} == {"error"}


async def test_plugins_are_told_of_clients_that_left(start, engine) -> None:
    client, records = await started(start)
    engine.hold_after = 2
    call = asyncio.create_task(client.complete(model="found/sql"))
    await engine.reached_gate.wait()
    call.cancel()
    await engine.left.wait()
    await client.get("/health")

    (record,) = records
    assert (record.status, record.finish_reason, record.adapter_name) == (499, "disconnected", "found/sql")
    assert record.num_completion_tokens == 2


async def test_plugins_are_told_of_completions_alone(start) -> None:
    client, records = await started(start)

    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        await client.get(path)
    await client.get("/v1/completions")
    await client.post("/nowhere", {"prompt": "x"})

    assert records == []


async def test_an_id_in_the_body_is_the_one_that_plugins_and_the_log_get(start) -> None:
    client, records = await started(start)

    reply = await client.complete(request_id="from-body")
    chat = await client.chat(request_id="from-chat", stream=True)

    assert [record.request_id for record in records] == ["from-body", "from-chat"]
    assert [one.headers["X-Request-Id"] for one in (reply, chat)] == ["from-body", "from-chat"]


async def test_a_key_that_lacks_a_scope_is_named_all_the_same(start, caplog) -> None:
    principal = Principal("team-a", scopes=frozenset({"infer"}))
    client = await start(api_keys=ApiKeys([ApiKey(ApiKey.of("key").digest, principal)]))
    caplog.set_level("INFO", logger="loramux.access")

    reply = await client.get("/metrics", headers={"Authorization": "Bearer key"})

    assert reply.status == 403
    assert "principal=team-a" in caplog.text
