"""A client that reads nothing holds up nobody: it is dropped, its rows are freed, and the others' tokens go on."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from loramux import AsyncLLMEngine
from loramux.server.inference import streaming
from loramux.server.inference.streaming import StreamTimes
from served_engine import serve_engine
from tiny_engines import engine_args

SECONDS = 20.0
PADDING = b": " + b"x" * 2**18 + b"\n"  # a comment of the stream, so that few events fill every buffer on the way


async def test_a_client_that_reads_nothing_is_dropped_and_holds_up_nobody(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = streaming._encoded
    monkeypatch.setattr(streaming, "_encoded", lambda event: PADDING + encoded(event))
    settings = {"stream_times": StreamTimes(write_seconds=0.5)}
    engine = AsyncLLMEngine.from_engine_args(engine_args(tiny_llama))
    try:
        async with (
            serve_engine(engine, tiny_llama, settings=settings) as served,
            aiohttp.ClientSession(served.url) as session,
        ):
            deaf = [ask_and_read_nothing(served.url) for _ in range(4)]

            texts = await asyncio.gather(*(read_all(session) for _ in range(4)))
            await until(engine, lambda: not len(served.server.in_flight))

            assert {text.split("\n\n")[-2] for text in texts} == {"data: [DONE]"}
            assert all(num_tokens_of(text) == 60 for text in texts)
            await until(engine, lambda: not engine.counters()["running"])
            assert engine.counters()["used_blocks"] == 0
            for client in deaf:
                client.close()
    finally:
        engine.shutdown()


async def until(engine: AsyncLLMEngine, is_reached: Callable[[], bool]) -> None:
    """Go around through the engine thread, one step at a time, until it is so."""
    async with asyncio.timeout(SECONDS):
        while not is_reached():
            await engine.abort("nobody")


def ask_and_read_nothing(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    body = json.dumps(request(max_tokens=200)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    client.sendall(head.encode() + b"\r\n\r\n" + body)
    return client


async def read_all(session: aiohttp.ClientSession) -> str:
    async with session.post("/v1/completions", json=request(max_tokens=60)) as response:
        return await response.text()


def request(max_tokens: int) -> dict[str, object]:
    usage = {"include_usage": True}
    return {"prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True, "stream_options": usage}


def num_tokens_of(text: str) -> int:
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return events[-1]["usage"]["completion_tokens"]
