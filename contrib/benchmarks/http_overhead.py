"""What HTTP costs: `python contrib/benchmarks/http_overhead.py`.

One process has the engine and the server, as `loramux serve` does; the clients are a process of their own. All the
while 1,000 connections are open and idle. Rounds alternate: 200 tasks read `AsyncLLMEngine.generate` in the server's
process, then 200 clients stream the same completions over HTTP. Printed are the medians of tokens per second, the
median ratio of the two halves of a round, and by how much a timer on the server's event loop was late while HTTP was
served.

The model is a random Llama. What matters is how long one of its steps takes beside the work that HTTP adds to it: 200
rows make 200 events per step, so a model whose step is a few milliseconds measures little but Python. `--hidden` and
`--layers` choose; the default step of 200 rows takes about as long as that of a small model on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from aiohttp import web
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loramux import AsyncLLMEngine, EngineArgs, SamplingParams
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.server.app import build_app, make_runner
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.state import Server

PROMPT = "hello"
END = "<end>"
LAG_SECONDS = 0.005
MODEL_NAME = "random"


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both halves")
    parser.add_argument("--active", type=int, default=200, help="streams at once")
    parser.add_argument("--idle", type=int, default=1000, help="connections that are open and idle")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of the random Llama")
    parser.add_argument("--layers", type=int, default=8, help="layers of the random Llama")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (unset: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / MODEL_NAME, hidden=arguments.hidden, layers=arguments.layers)
        engine = AsyncLLMEngine.from_engine_args(
            EngineArgs(
                model=str(model),
                served_model_name=(MODEL_NAME,),
                max_num_seqs=arguments.active,
                max_num_batched_tokens=max(2048, arguments.active),
                kv_cache_memory_bytes=2 * 2**30,
                enable_prefix_caching=False,
            )
        )
        try:
            rounds = asyncio.run(measure(engine, arguments))
        finally:
            engine.shutdown()
    show(rounds, arguments)
    return 0


def build_model(folder: Path, *, hidden: int, layers: int) -> Path:
    """Write a random Llama with a byte-level tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate([END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)  # type: ignore[no-untyped-call]  # theirs
    fast.save_pretrained(folder)
    return folder


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


async def measure(engine: AsyncLLMEngine, arguments: argparse.Namespace) -> list[Round]:
    """Serve, connect the clients, and let the halves alternate; runs on the event loop that serves."""
    rounds = []
    async with _served(engine) as port, _clients(port, arguments) as clients:
        await _read_all(engine, arguments)  # the first of anything is slower
        await clients.stream()
        for _ in range(arguments.rounds):
            alone = await _timed(_read_all(engine, arguments))
            async with _lag() as lags:
                over_http = await _timed(clients.stream())
            rounds.append(Round(alone, over_http, lags))
    return rounds


async def _timed(work: Awaitable[int]) -> Half:
    began, began_cpu = time.perf_counter(), time.thread_time()
    num_tokens = await work
    seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - began_cpu
    return Half(num_tokens / seconds, cpu_seconds / num_tokens * 1e6)


async def _read_all(engine: AsyncLLMEngine, arguments: argparse.Namespace) -> int:
    """Read as many answers as there are clients from the engine itself; returns the number of their tokens."""
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)

    async def read() -> int:
        num_tokens = 0
        async for output in engine.generate(PROMPT, params, uuid.uuid4().hex):
            num_tokens = len(output.outputs[0].token_ids)
        return num_tokens

    return sum(await asyncio.gather(*(read() for _ in range(arguments.active))))


@asynccontextmanager
async def _served(engine: AsyncLLMEngine) -> AsyncIterator[int]:
    chain = ResolverChain([])
    registry = AdapterRegistry([MODEL_NAME], chain, engine.load_adapter, engine.remove_lora, memory=engine)
    server = Server(
        engine=engine,
        tokenizer=engine.tokenizer,
        vocabulary=Vocabulary(engine.tokenizer.token_text, engine.tokenizer.token_bytes),
        registry=registry,
        base_model_names=(MODEL_NAME,),
        model_root=MODEL_NAME,
        max_model_len=engine.max_model_len,
        created=0,
    )
    runner = make_runner(build_app(server))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
        await registry.close()
        await chain.close()


@asynccontextmanager
async def _lag() -> AsyncIterator[list[float]]:
    """Collect how many milliseconds late a timer of the running loop is."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            lags.append((time.perf_counter() - due) * 1000)

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
async def _clients(port: int, arguments: argparse.Namespace) -> AsyncIterator[_Clients]:
    numbers = (port, arguments.idle, arguments.active, arguments.tokens)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("http_clients.py")),
        *map(str, numbers),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield _Clients(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def show(rounds: Sequence[Round], arguments: argparse.Namespace) -> None:
    """Print the figures."""
    alone, over_http = [one.alone for one in rounds], [one.over_http for one in rounds]
    lags = sorted(lag for one in rounds for lag in one.lags)
    ratios = sorted(one.over_http.tokens_per_second / one.alone.tokens_per_second for one in rounds)
    title = f"{arguments.active} streams beside {arguments.idle} idle connections, {len(rounds)} rounds"
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
    console.print(
        f"over HTTP / engine alone: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )
    console.print(f"event-loop lag in ms: p50 {_at(lags, 0.5):.1f}, p99 {_at(lags, 0.99):.1f}, max {lags[-1]:.1f}")


def _median_speed(halves: Sequence[Half]) -> float:
    return statistics.median(half.tokens_per_second for half in halves)


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
