"""Does a step cost more where more adapters are registered? `python contrib/benchmarks/registered_adapters.py MODEL`.

32 streams ask, through the registry, for 8 adapters of rank 8 to 64: first with 10 registered, then with 10,000, then
with 10 again, so that a machine that changes its speed shows. The others are adapters of rank 1, read and checked like
any; host memory holds 64. Printed is the time per step with 10,000 over the mean of the two measurements with 10.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from goal_table import Goal, show_goals
from loramux import AsyncLLMEngine, EngineArgs, SamplingParams
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.bench.driver import Answered, drive
from loramux.bench.lengths import UniformLengths
from loramux.bench.popularity import Popularity
from loramux.bench.results import faults
from loramux.bench.workload import BenchRequest, Workload
from made_adapters import ALL_LINEAR, AdapterKind, ensure_adapters

USED = AdapterKind((8, 16, 32, 64, 8, 16, 32, 64), ALL_LINEAR)
FILLER = AdapterKind((1,))
NUM_USED = 8
NUM_FILLERS = 64
FEW = 10


class RegistryTarget:
    """An engine behind the registry, which looks up every request's adapter by its name."""

    def __init__(self, engine: AsyncLLMEngine, registry: AdapterRegistry) -> None:
        self._engine = engine
        self._registry = registry

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered:
        params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True)
        num_tokens = 0
        async with self._registry.use(request.adapter or "base") as served:
            adapter = None if served is None else served.lora_request
            prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
            async for output in self._engine.generate(prompt, params, f"{request.number}", adapter):
                on_piece()
                num_tokens = len(output.outputs[0].token_ids)
        return Answered(None, num_tokens)

    def counting(self) -> Callable[[], Mapping[str, object]]:
        before = self._engine.state().num_steps
        return lambda: {"num_steps": self._engine.state().num_steps - before}


def main() -> int:
    """Measure three times and print the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a safetensors folder")
    parser.add_argument("--registered", type=int, default=10_000, help="adapters (10000)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (64)")
    arguments = parser.parse_args()
    model = arguments.model.expanduser()
    engine = AsyncLLMEngine.from_engine_args(
        EngineArgs(model=str(model), enable_lora=True, enable_prefix_caching=False, kv_cache_memory_bytes=2 * 2**30)
    )
    try:
        few, many, few_again = asyncio.run(measure(engine, model, arguments))
    finally:
        engine.shutdown()
    figures = ", ".join(f"{1000 * seconds:.1f}" for seconds in (few, many, few_again))
    title = f"time per step, {arguments.registered:,} registered / {FEW}"
    goal = Goal(title, 2 * many / (few + few_again), 1.05, is_least=False)
    return show_goals([goal], setting=f"{model.name}, ms per step with {FEW}, many, {FEW}: {figures}")


async def measure(engine: AsyncLLMEngine, model: Path, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Return seconds per step with few adapters, with many, and with few again."""
    chain = ResolverChain([])
    registry = AdapterRegistry(["base"], chain, engine.load_adapter, engine.remove_lora, memory=engine)
    target = RegistryTarget(engine, registry)
    fillers = list(ensure_adapters(model, NUM_FILLERS, FILLER).values())
    used = ensure_adapters(model, NUM_USED, USED)
    others = [f"filler-{number}" for number in range(arguments.registered - NUM_USED)]

    async def register(names: list[str]) -> None:
        for number, name in enumerate(names):
            await registry.add(name, str(fillers[number % NUM_FILLERS]))

    try:
        for name, folder in used.items():
            await registry.add(name, str(folder))
        num_few = FEW - NUM_USED
        await register(others[:num_few])
        few = await _seconds_per_step(target, engine, list(used), arguments.tokens, run="few")
        for name in others[:num_few]:
            await registry.remove(name)
        await register(others)
        many = await _seconds_per_step(target, engine, list(used), arguments.tokens, run="many")
        for name in others[num_few:]:
            await registry.remove(name)
        few_again = await _seconds_per_step(target, engine, list(used), arguments.tokens, run="few again")
    finally:
        await registry.close()
        await chain.close()
    return few, many, few_again


async def _seconds_per_step(
    target: RegistryTarget, engine: AsyncLLMEngine, names: list[str], num_tokens: int, *, run: str
) -> float:
    load = Workload(
        num_requests=32,
        prompt_lengths=UniformLengths(16, 16),
        output_lengths=UniformLengths(num_tokens, num_tokens),
        popularity=Popularity("distinct"),
    )
    vocab_size = engine.vocab_size
    await drive(
        target, load.warm_up(names, NUM_USED, vocab_size=vocab_size, run=run), concurrency=NUM_USED, num_adapters=8
    )
    requests = load.requests(names, vocab_size=vocab_size, run=run)
    measured = await drive(target, requests, concurrency=None, num_adapters=NUM_USED)
    if not measured.is_good:
        raise RuntimeError(faults([measured])[0])
    num_steps = measured.counts["num_steps"]
    assert isinstance(num_steps, int)
    return measured.seconds / num_steps


if __name__ == "__main__":
    sys.exit(main())
