"""What finding adapters costs those who have theirs: `python contrib/benchmarks/adapter_life.py`.

1. Looking up a resident name while 10,000 names are served.
2. The latency of a resident adapter over HTTP, on the demo's model, alone and while 50 requests wait for an S3 endpoint
   that accepts connections and never answers; and after how long these 50 are told so. The source was asked once
   before: making its client holds the interpreter for a third of a second, once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.lora.request import LoRARequest

DEMO = Path(__file__).parents[1] / "demo"
NUM_NAMES = 10_000
NUM_HANGING = 50
START_SECONDS = 120.0


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="requests to the resident adapter in each half")
    parser.add_argument("--lookups", type=int, default=20_000, help="lookups of resident names")
    arguments = parser.parse_args()
    console = Console()
    console.print(_table("resident name, 10,000 served: microseconds", asyncio.run(time_lookups(arguments.lookups))))
    halves, told_after = asyncio.run(time_requests(arguments.requests))
    for title, milliseconds in halves.items():
        console.print(_table(f"{title}: milliseconds", milliseconds))
    console.print(
        f"{len(told_after)} hanging requests were told after {min(told_after):.1f} to {max(told_after):.1f} s"
    )
    return 0


async def time_lookups(num_lookups: int) -> list[float]:
    """Return microseconds of each lookup of a name that is served."""

    async def load(request: LoRARequest) -> LoadedAdapter:
        return LoadedAdapter(f"digest of {request.lora_path}", 1, 1)

    async def unload(_: int) -> None: ...

    registry = AdapterRegistry(["base"], ResolverChain([]), load, unload)
    for number in range(NUM_NAMES):
        await registry.add(f"team/adapter-{number}", f"/adapters/{number}")
    took = []
    for number in range(num_lookups):
        name = f"team/adapter-{number * 7919 % NUM_NAMES}"
        began = time.perf_counter()
        async with registry.use(name):
            took.append((time.perf_counter() - began) * 1e6)
    await registry.close()
    return took


async def time_requests(num_requests: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return milliseconds of the resident adapter's requests in both halves, and after how long the others ended."""
    async with _silent_endpoint() as endpoint, _server(endpoint) as url, aiohttp.ClientSession() as session:
        for _ in range(20):
            await _ask(session, url, "sql-lora")
        await _ask(session, url, "far/first", status=503)  # the S3 client reads its service's description once
        alone = [await _ask(session, url, "sql-lora") for _ in range(num_requests)]
        hanging = [
            asyncio.create_task(_ask(session, url, f"far/{number}", status=503)) for number in range(NUM_HANGING)
        ]
        beside = [await _ask(session, url, "sql-lora") for _ in range(num_requests)]
        told_after = [milliseconds / 1000 for milliseconds in await asyncio.gather(*hanging)]
    return {"resident adapter alone": alone, f"beside {NUM_HANGING} that wait for a silent source": beside}, told_after


async def _ask(session: aiohttp.ClientSession, url: str, model: str, status: int = 200) -> float:
    began = time.perf_counter()
    body = {"model": model, "prompt": "hello", "max_tokens": 1, "temperature": 0}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        text = await response.text()
        if response.status != status:
            raise RuntimeError(f"{model}: {response.status} {text}")
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def _silent_endpoint() -> AsyncIterator[str]:
    async def accept(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@asynccontextmanager
async def _server(s3_endpoint: str) -> AsyncIterator[str]:
    sys.path.insert(0, str(DEMO))
    from base_model import ensure_base_model  # the demo is not a package

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "loramux.cli", "serve", str(ensure_base_model()), "--enable-lora"),
        *("--served-model-name", "SmolLM2-135M-Instruct", "--port", str(port)),
        *("--resolver-option", f"filesystem.root={DEMO / 'adapters'}"),
        *("--resolver-option", "s3.url=s3://bucket/{lora_name}", "--resolver-option", "s3.anonymous=true"),
        *("--resolver-option", f"s3.endpoint_url={s3_endpoint}"),
    ]
    environment = {**os.environ, "LORAMUX_STORE": str(Path.home() / ".cache" / "loramux" / "benchmark-store")}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_healthy(url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def _until_healthy(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the server was not healthy after {START_SECONDS:.0f} s")


def _table(title: str, values: Sequence[float]) -> Table:
    table = Table("median", "p95", "p99", "max", title=title, title_justify="left")
    ordered = sorted(values)
    table.add_row(
        f"{statistics.median(ordered):.1f}",
        *(f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))]:.1f}" for share in (0.95, 0.99)),
        f"{ordered[-1]:.1f}",
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
