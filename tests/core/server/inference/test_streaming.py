from __future__ import annotations

import asyncio
import socket

import pytest

from loramux.adapters.served_adapter import LoadedAdapter
from loramux.errors import AdapterInvalid, EngineDead
from loramux.lora.request import LoRARequest
from loramux.server.inference import streaming
from loramux.server.inference.streaming import StreamTimes

SECOND = 1.0  # more than a loopback request takes; a broken promise then fails instead of hanging


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_its_own_status(client, engine, stream: bool) -> None:
    engine.fail_after, engine.failure = 0, AdapterInvalid("sql", "too big")

    reply = await client.complete(stream=stream)

    assert (reply.status, reply.error["code"]) == (400, "adapter_invalid")


@pytest.mark.parametrize("kind", ["complete", "chat"])
async def test_a_failure_after_it_is_an_error_event_without_done(client, engine, kind: str) -> None:
    engine.fail_after, engine.failure = 3, EngineDead("gone")

    reply = await getattr(client, kind)(stream=True)

    assert reply.status == 200
    assert reply.events[-1]["error"]["code"] == "engine_unavailable"
    assert "[DONE]" not in reply.events
    assert engine.num_running == 0


async def test_a_failure_that_an_output_reports_is_one_too(client, engine) -> None:
    engine.report_after, engine.failure = 3, AdapterInvalid("sql", "gone")

    assert (await client.complete(stream=True)).events[-1]["error"]["code"] == "adapter_invalid"
    assert (await client.complete()).error["code"] == "adapter_invalid"


async def test_a_bug_in_a_stream_tells_nothing_but_the_request_id(client, engine, caplog) -> None:
    engine.fail_after, engine.failure = 3, ZeroDivisionError("/etc/secret")

    reply = await client.complete(stream=True)

    request_id = reply.headers["X-Request-Id"]
    assert reply.events[-1]["error"]["message"] == f"Internal error (request id {request_id})."
    assert request_id in caplog.text


async def test_a_stream_is_not_cached_or_buffered_on_its_way(client) -> None:
    headers = (await client.complete(stream=True)).headers

    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold_after", [0, 3])
async def test_a_client_that_leaves_aborts_its_request(client, engine, stream: bool, hold_after: int) -> None:
    engine.hold_after = hold_after
    call = asyncio.create_task(client.complete(stream=stream, prompt=["a", "b"]))
    await asyncio.wait_for(engine.reached_gate.wait(), SECOND)

    call.cancel()

    await asyncio.wait_for(engine.left.wait(), SECOND)
    assert engine.num_aborted == 2
    await asyncio.wait_for(client.server.in_flight._idle.wait(), SECOND)


async def test_a_stream_that_waits_says_so_until_something_comes(start, engine) -> None:
    client = await start(stream_times=StreamTimes(heartbeat_seconds=0.01))
    engine.hold_after = 0

    async with client.session.post(client.url + "/v1/completions", json={"prompt": "hi", "stream": True}) as response:
        assert response.status == 200  # the headers are out, although the engine has given nothing yet
        assert [await response.content.readline() for _ in range(4)] == [b": ping\n", b"\n"] * 2
        engine.gate.set()
        rest = (await response.content.read()).replace(b": ping\n\n", b"")

    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_what_fails_after_a_heartbeat_is_an_error_event(start, engine) -> None:
    client = await start(stream_times=StreamTimes(heartbeat_seconds=0.01))
    engine.hold_after, engine.fail_after, engine.failure = 0, 0, AdapterInvalid("sql", "too big")

    async with client.session.post(client.url + "/v1/completions", json={"prompt": "hi", "stream": True}) as response:
        assert await response.content.readline() == b": ping\n"
        engine.gate.set()
        rest = (await response.content.read()).replace(b": ping", b"").strip()

    assert rest.startswith(b'data: {"error":')
    assert b"adapter_invalid" in rest
    assert b"[DONE]" not in rest


async def test_a_heartbeat_comes_while_an_adapter_loads(start, engine, registry) -> None:
    client = await start(stream_times=StreamTimes(heartbeat_seconds=0.01))
    arrived = asyncio.Event()

    async def load_slowly(request: LoRARequest) -> LoadedAdapter:
        await arrived.wait()
        return await engine.load_adapter(request)

    registry._loader._load = load_slowly
    body = {"model": "found/slow", "prompt": "hi", "stream": True}
    async with client.session.post(client.url + "/v1/completions", json=body) as response:
        assert await response.content.readline() == b": ping\n"
        arrived.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_reads_nothing_is_dropped(start, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await start(stream_times=StreamTimes(write_seconds=0.05))
    monkeypatch.setattr(streaming, "_encoded", lambda event: b"data: " + b"x" * 2**23 + b"\n\n")
    engine.hold_after = 3
    host, port = client.url.removeprefix("http://").split(":")
    body = b'{"prompt": "hi", "stream": true}'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )

        await asyncio.wait_for(engine.left.wait(), SECOND)

    assert engine.num_aborted == 1
