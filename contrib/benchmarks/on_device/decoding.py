"""Decode steps of whole engines: the base model on one without LoRA, and base and mixed adapters on one with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

from loramux import EngineArgs, LLMEngine, LoRARequest, SamplingParams
from loramux.bench.workload import random_prompt

WARM_UP_STEPS = 4


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """`batch_size` sequences on `num_adapters` adapters in turn; 0 for the base model."""

    batch_size: int
    num_adapters: int = 0


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Median seconds of a step, of the medians of all rounds; `without` has the loads of the engine without LoRA."""

    without: Mapping[int, float]
    enabled: Mapping[DecodeLoad, float]


def time_decoding(
    args: EngineArgs,
    adapters: Sequence[LoRARequest],
    loads: Sequence[DecodeLoad],
    *,
    num_steps: int,
    prompt_tokens: int,
    num_rounds: int = 3,
) -> DecodeTimes:
    """Time every load, and the base model at each of their batch sizes, in turn on two engines that are there at once.

    `args` are those of the engine with LoRA, whose slots hold all the adapters.
    """
    sizes = sorted({load.batch_size for load in loads})
    both = [*(DecodeLoad(size) for size in sizes), *loads]
    plain: dict[int, list[float]] = {size: [] for size in sizes}
    mixed: dict[DecodeLoad, list[float]] = {load: [] for load in both}
    with ExitStack() as stack:
        enabled = LLMEngine.from_engine_args(args)
        stack.callback(enabled.shutdown)
        without = LLMEngine.from_engine_args(replace(args, enable_lora=False))
        stack.callback(without.shutdown)
        for _ in range(1 + num_rounds):
            for size, seconds in plain.items():
                seconds.append(step_seconds(without, DecodeLoad(size), (), num_steps, prompt_tokens))
            for load, seconds in mixed.items():
                seconds.append(step_seconds(enabled, load, adapters, num_steps, prompt_tokens))
    return DecodeTimes(  # the first round warms up, and is not counted
        without={size: median(seconds[1:]) for size, seconds in plain.items()},
        enabled={load: median(seconds[1:]) for load, seconds in mixed.items()},
    )


def step_seconds(
    engine: LLMEngine, load: DecodeLoad, adapters: Sequence[LoRARequest], num_steps: int, prompt_tokens: int
) -> float:
    """Median seconds of steps in which every sequence decodes; RuntimeError where one gets no token in a step."""
    chosen = adapters[: load.num_adapters]
    for adapter in chosen:
        engine.add_lora(adapter)
    longest = num_steps + WARM_UP_STEPS + load.batch_size * prompt_tokens  # while the last prompts are computed too
    params = SamplingParams(
        temperature=0, max_tokens=min(longest, engine.max_model_len - prompt_tokens), ignore_eos=True
    )
    names = [f"decode-{number}" for number in range(load.batch_size)]
    try:
        for number, name in enumerate(names):
            prompt = random_prompt(prompt_tokens, engine.runner.loaded.vocab_size, name)
            engine.add_request(name, list(prompt), params, chosen[number % len(chosen)] if chosen else None)
        while len(engine.step()) < load.batch_size:
            pass
        for _ in range(WARM_UP_STEPS):
            engine.step()
        return median(_timed_step(engine, load.batch_size) for _ in range(num_steps))
    finally:
        for name in names:
            engine.abort_request(name)


def _timed_step(engine: LLMEngine, batch_size: int) -> float:
    began = time.perf_counter()
    outputs = engine.step()
    seconds = time.perf_counter() - began
    if len(outputs) != batch_size:
        raise RuntimeError(f"{len(outputs)} of {batch_size} sequences got a token in a step")
    return seconds
