"""What HTTP costs: `python contrib/benchmarks/http_overhead.py`.

One process has the engine and the server, as `loramux serve` does; the clients are a process of their own. All the
while 1,000 connections are open and idle. Rounds alternate: 200 tasks read `AsyncLLMEngine.generate` in the server's
process, then 200 clients stream the same completions over HTTP. Printed are the medians of tokens per second, the
median ratio of the two halves of a round, and by how much a timer on the server's event loop was late while HTTP was
served.

What matters is how long a step takes beside the work that HTTP adds to it: 200 rows make 200 events per step, so a
model whose step is a few milliseconds measures little but Python. Unless `--model` names a folder, the model is a
random Llama; `--hidden` and `--layers` choose its size, and the default step of 200 rows takes about as long as that of
a small model on two cores. `--adapters 8` lets the requests ask for so many adapters of rank 8 to 64 in turn, instead
of the base model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from goal_table import Goal, show_goals
from loramux import AsyncLLMEngine, EngineArgs, SamplingParams
from loramux.bench.workload import random_prompt
from loramux.lora.request import LoRARequest
from made_adapters import ALL_LINEAR, AdapterKind, ensure_adapters
from own_server import BASE_NAME, OwnServer, own_server
from random_model import build_model

KIND = AdapterKind((8, 16, 32, 64), ALL_LINEAR)
GOAL = 0.93
LAG_SECONDS = 0.1
"""As often as the server itself looks. Every look wakes the loop while a step has the CPUs and their caches: one each
5 ms took as much of its time as all of HTTP."""


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both halves")
    parser.add_argument("--active", type=int, default=200, help="streams at once")
    parser.add_argument("--idle", type=int, default=1000, help="connections that are open and idle")
    parser.add_argument("--prompt-tokens", type=int, default=5, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--adapters", type=int, default=0, help="how many the requests ask for in turn")
    parser.add_argument("--model", type=Path, default=None, help="a safetensors folder (unset: a random Llama)")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of the random Llama")
    parser.add_argument("--layers", type=int, default=8, help="layers of the random Llama")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (unset: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model is None:
            model = build_model(Path(folder) / "random", hidden=arguments.hidden, layers=arguments.layers)
        else:
            model = arguments.model.expanduser()
        adapters = ensure_adapters(model, arguments.adapters, KIND) if arguments.adapters else {}
        engine = AsyncLLMEngine.from_engine_args(
            EngineArgs(
                model=str(model),
                enable_lora=bool(adapters),
                max_loras=max(1, len(adapters)),
                max_num_seqs=arguments.active,
                max_num_batched_tokens=max(2048, arguments.active),
                kv_cache_memory_bytes=2 * 2**30,
                enable_prefix_caching=False,
            )
        )
        try:
            rounds = asyncio.run(measure(engine, adapters, arguments))
        finally:
            engine.shutdown()
    return show(rounds, model.name, arguments)


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a round: its speed, and the CPU time that the thread of the event loop took for each token."""

    tokens_per_second: float
    loop_microseconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """Both halves, and by how many milliseconds a timer of the loop was late during the second."""

    alone: Half
    over_http: Half
    lags: Sequence[float]


@dataclass(frozen=True, slots=True)
class Ask:
    """What one stream asks for, in every round."""

    prompt: tuple[int, ...]
    adapter: LoRARequest | None
    num_tokens: int

    def body(self) -> dict[str, object]:
        return {
            "model": BASE_NAME if self.adapter is None else self.adapter.lora_name,
            "prompt": self.prompt,
            "max_tokens": self.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def measure(engine: AsyncLLMEngine, adapters: Mapping[str, Path], arguments: argparse.Namespace) -> list[Round]:
    """Serve, connect the clients, and let the halves alternate; runs on the event loop that serves."""
    rounds = []
    async with own_server(engine, adapters) as server:
        asks = _asks(engine, server, arguments)
        async with _clients(server.port, asks, arguments.idle) as clients:
            await _read_all(engine, asks)  # the first of anything is slower
            await clients.stream()
            for _ in range(arguments.rounds):
                alone = await _timed(_read_all(engine, asks))
                async with _lag() as lags:
                    over_http = await _timed(clients.stream())
                rounds.append(Round(alone, over_http, lags))
    return rounds


def _asks(engine: AsyncLLMEngine, server: OwnServer, arguments: argparse.Namespace) -> list[Ask]:
    adapters: list[LoRARequest | None] = [*server.adapters.values()] or [None]
    prompts = [
        random_prompt(arguments.prompt_tokens, engine.vocab_size, f"{number}") for number in range(arguments.active)
    ]
    return [Ask(prompt, adapters[number % len(adapters)], arguments.tokens) for number, prompt in enumerate(prompts)]


async def _timed(work: Awaitable[int]) -> Half:
    began, began_cpu = time.perf_counter(), time.thread_time()
    num_tokens = await work
    seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - began_cpu
    return Half(num_tokens / seconds, cpu_seconds / num_tokens * 1e6)


async def _read_all(engine: AsyncLLMEngine, asks: Sequence[Ask]) -> int:
    """Read the same answers as the clients, from the engine itself; returns the number of their tokens."""

    async def read(ask: Ask) -> int:
        num_tokens = 0
        params = SamplingParams(temperature=0, max_tokens=ask.num_tokens, ignore_eos=True)
        async for output in engine.generate(list(ask.prompt), params, uuid.uuid4().hex, ask.adapter):
            num_tokens = len(output.outputs[0].token_ids)
        return num_tokens

    return sum(await asyncio.gather(*map(read, asks)))


@asynccontextmanager
async def _lag() -> AsyncIterator[list[float]]:
    """Collect how many milliseconds late a timer of the running loop is."""
    lags: list[float] = []

    async def watch() -> None:
        seconds = 0.0  # what is over soon is looked at, too
        while True:
            due = time.perf_counter() + seconds
            await asyncio.sleep(seconds)
            lags.append((time.perf_counter() - due) * 1000)
            seconds = LAG_SECONDS

    task = asyncio.create_task(watch())
    try:
        yield lags
    finally:
        task.cancel()


class _Clients:
    """The process of the clients: told to stream by a line on its input, answers with a number."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def stream(self) -> int:
        """Let all of them stream at once; returns the number of tokens that came."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"go\n")
        return int(await self._process.stdout.readline())


@asynccontextmanager
async def _clients(port: int, asks: Sequence[Ask], num_idle: int) -> AsyncIterator[_Clients]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("http_clients.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    settings = {"port": port, "num_idle": num_idle, "bodies": [ask.body() for ask in asks]}
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    try:
        yield _Clients(process)
    finally:
        process.stdin.close()
        await process.wait()


def show(rounds: Sequence[Round], model: str, arguments: argparse.Namespace) -> int:
    """Print the figures; return the exit status, 1 when the goal is missed."""
    alone, over_http = [one.alone for one in rounds], [one.over_http for one in rounds]
    lags = sorted(lag for one in rounds for lag in one.lags)
    ratios = sorted(one.over_http.tokens_per_second / one.alone.tokens_per_second for one in rounds)
    asked = f"{arguments.adapters} adapters" if arguments.adapters else "the base model"
    title = f"{arguments.active} streams of {asked}, {arguments.idle} idle connections, {len(rounds)} rounds"
    table = Table("median", "engine alone", "over HTTP", title=title, title_justify="left")
    table.add_row("tokens per second", *(f"{_median_speed(halves):,.0f}" for halves in (alone, over_http)))
    table.add_row(
        "ms per step", *(f"{1000 * arguments.active / _median_speed(halves):.1f}" for halves in (alone, over_http))
    )
    table.add_row(
        "event loop's CPU µs per token",
        *(f"{statistics.median(half.loop_microseconds for half in halves):.1f}" for halves in (alone, over_http)),
    )
    console = Console()
    console.print(table)
    console.print(f"ratios from {ratios[0]:.3f} to {ratios[-1]:.3f}")
    console.print(f"event-loop lag in ms: p50 {_at(lags, 0.5):.1f}, max {lags[-1]:.1f}, {len(lags)} looks")
    goal = Goal(f"over HTTP / engine alone, {title}", statistics.median(ratios), GOAL)
    return show_goals([goal], setting=f"{model}, {arguments.prompt_tokens} tokens in, {arguments.tokens} out")


def _median_speed(halves: Sequence[Half]) -> float:
    return statistics.median(half.tokens_per_second for half in halves)


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
