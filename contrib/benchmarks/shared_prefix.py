"""What prefix caching saves: `python contrib/benchmarks/shared_prefix.py MODEL`.

32 requests arrive at once, each with the same 512 tokens in front of 16 of its own. Rounds alternate between an engine
with prefix caching, which has not seen the prefix before, and one without. Printed is the median of the rounds' ratios
of the median time to first token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from goal_table import Goal, show_goals
from loramux import EngineArgs
from loramux.bench.engine_target import EngineTarget
from loramux.bench.lengths import UniformLengths
from loramux.bench.plan import Plan
from loramux.bench.popularity import Popularity
from loramux.bench.results import faults
from loramux.bench.workload import Workload


def main() -> int:
    """Run the rounds and print the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a safetensors folder")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both engines (3)")
    parser.add_argument("--requests", type=int, default=32, help="that arrive at once (32)")
    parser.add_argument("--prefix", type=int, default=512, help="tokens that all of them share (512)")
    parser.add_argument("--own", type=int, default=16, help="tokens of each alone (16)")
    arguments = parser.parse_args()
    args = EngineArgs(model=str(arguments.model.expanduser()), kv_cache_memory_bytes=2 * 2**30)
    targets = [EngineTarget.start(replace(args, enable_prefix_caching=is_on), {}) for is_on in (True, False)]
    try:
        ratios = [_round(targets, arguments, seed=seed) for seed in range(arguments.rounds)]
    finally:
        for target in targets:
            target.close()
    title = f"TTFT of {arguments.requests} requests behind {arguments.prefix} shared tokens, with caching / without"
    goal = Goal(title, statistics.median(ratios), 0.15, is_least=False)
    return show_goals([goal], setting=f"{arguments.model.name}, {arguments.rounds} rounds")


def _round(targets: list[EngineTarget], arguments: argparse.Namespace, *, seed: int) -> float:
    load = Workload(
        num_requests=arguments.requests,
        prompt_lengths=UniformLengths(arguments.own, arguments.own),
        output_lengths=UniformLengths(4, 4),
        popularity=Popularity("distinct"),
        shared_prefix_tokens=arguments.prefix,
        seed=seed,
    )
    cached, computed = (_ttft(target, Plan(load=load, num_warmup=0)) for target in targets)
    return cached / computed


def _ttft(target: EngineTarget, plan: Plan) -> float:
    (run,) = asyncio.run(plan.run_all(target, vocab_size=target.vocab_size))
    if not run.is_good:
        raise RuntimeError(faults([run])[0])
    ttft = run.summary().ttft_seconds
    assert ttft is not None
    return ttft.p50


if __name__ == "__main__":
    sys.exit(main())
