"""SIGTERM under load: every request that was taken gets an end of its own."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from served import serving
from tiny_models import build_model

FOREVER = 30_000  # tokens; more than fit into the grace period
NUM_CLIENTS = 16
TIMES = ("--drain-delay", "0.2", "--grace", "0.5", "--kv-cache-memory-bytes", "128MiB")


@pytest.fixture(scope="module")
def endless_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "endless", max_position_embeddings=2 * FOREVER)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_every_request_gets_an_end(endless_llama: Path, tmp_path: Path, seed: int) -> None:
    endings = await stop_under_load(endless_llama, tmp_path / "log", seed)

    assert set(endings) <= {"answered", "told to go", "told in the stream"}
    assert endings["answered"] > 0
    assert endings["told in the stream"] > 0


@pytest.mark.campaign
async def test_of_fifty_stops_under_load_none_leaves_a_request_without_an_end(
    endless_llama: Path, tmp_path: Path
) -> None:
    total: Counter[str] = Counter()
    for seed in range(50):
        total += await stop_under_load(endless_llama, tmp_path / f"log-{seed}", seed)
        print(f"stop {seed + 1}: {dict(total)}", flush=True)  # noqa: T201

    assert set(total) <= {"answered", "told to go", "told in the stream"}


async def stop_under_load(model: Path, log: Path, seed: int) -> Counter[str]:
    """Serve, load, send SIGTERM at a random moment; how the requests ended until nobody was let in any more."""
    chance = random.Random(seed)
    with serving(str(model), *TIMES, log=log) as served:
        endings: Counter[str] = Counter()
        signal_after = chance.randint(1, 80)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(served.url, connector=connector) as session, asyncio.TaskGroup() as clients:

            def note(ending: str) -> None:
                endings[ending] += 1
                if endings.total() == signal_after:
                    served.signal(signal.SIGTERM)

            for number in range(NUM_CLIENTS):
                client = ask_until_closed(session, str(model), random.Random(chance.random()), note, number)
                clients.create_task(client)
        assert served.wait() == 0
    assert "Traceback" not in await asyncio.to_thread(log.read_text)
    return endings


async def ask_until_closed(
    session: aiohttp.ClientSession, model: str, chance: random.Random, note: Callable[[str], None], number: int
) -> None:
    while True:
        length = FOREVER if number < 4 else chance.choice([1, 4, 30])
        body = {"model": model, "prompt": "x", "max_tokens": length, "ignore_eos": True}
        try:
            note(await ask(session, {**body, "stream": number < 4 or chance.random() < 0.5}))
        except aiohttp.ClientConnectorError:
            return  # nobody listens: the request was never taken
        except aiohttp.ClientError as exc:
            note(f"cut off: {exc!r}")


async def ask(session: aiohttp.ClientSession, body: dict[str, object]) -> str:
    async with session.post("/v1/completions", json=body) as response:
        text = await response.text()
    if response.status == 503:
        return "told to go" if json.loads(text)["error"]["code"] == "server_draining" else f"refused: {text}"
    if not body["stream"]:
        return "answered" if json.loads(text)["choices"][0]["finish_reason"] else f"no end: {text}"
    last = text.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: ")
    if last == "[DONE]":
        return "answered"
    return "told in the stream" if json.loads(last)["error"]["code"] == "server_draining" else f"no end: {last}"
