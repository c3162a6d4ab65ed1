"""How much of a decode step attention takes: whole steps are timed, and the calls of `attend` in others like them.

Steps on a CPU run as a tape, in which nobody can look at the clock; those whose attention is timed run layer by layer.
`attend` is scores, softmax and weighted sum over the cache; projections, rotations and writing to the cache are not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch

from loramux.batch import BASE_SLOT, ScheduledBatch, ScheduledSequence
from loramux.engine.llm_engine import LLMEngine
from loramux.model import attention
from loramux.model import runner as runner_module
from loramux.model.forward_context import ForwardContext
from loramux.model.fused import layers
from loramux.model.runner import ModelRunner
from loramux.model.sampling_row import SamplingRow
from loramux.sampling_params import SamplingParams
from loramux_kernels import ScoreRule

WARM_UP_STEPS = 2
NUM_STEPS = 10


class AttentionClock:
    """Stands in for `attend`, and adds up the seconds of its calls."""

    def __init__(self) -> None:
        self._attend = attention.attend
        self.seconds = 0.0
        self.num_calls = 0

    def attend(
        self, context: ForwardContext, layer: int, query: torch.Tensor, num_heads: int, rule: ScoreRule
    ) -> torch.Tensor:
        """Attend, and look at the clock before and after."""
        began = time.perf_counter()
        result = self._attend(context, layer, query, num_heads, rule)
        self.seconds += time.perf_counter() - began
        self.num_calls += 1
        return result


def attention_figures(engine: LLMEngine, num_requests: int, num_context: int) -> dict[str, float]:
    """Run decode steps of so many sequences, each over `num_context` tokens of KV memory of its own.

    The steps go to the runner directly, on memory that holds numbers of no meaning: prefilling it would take longer
    than all the rest, and what attention costs does not depend on them. All of it must have been written: memory that
    never was is one page, read from the cache. The scheduler's share of a step is left out.
    """
    runner = engine.runner
    batch, rows = decode_batch(runner, [BASE_SLOT] * num_requests, num_context)
    clock = AttentionClock()
    step_seconds = _time_steps(lambda: runner.execute(batch, rows), clock)
    with (
        mock.patch.object(runner_module, "is_decode", lambda _sequences: False),
        mock.patch.object(attention, "attend", clock.attend),
        mock.patch.object(layers, "attend", clock.attend),
    ):
        _time_steps(lambda: runner.execute(batch, rows), clock)
    num_layers = len(runner.kv_cache.keys)
    if clock.num_calls != NUM_STEPS * num_layers:
        raise RuntimeError(f"attention was called {clock.num_calls} times in {NUM_STEPS} steps of {num_layers} layers")
    return {
        "share": clock.seconds / step_seconds,
        "ms": clock.seconds / NUM_STEPS * 1000,
        "step_ms": step_seconds / NUM_STEPS * 1000,
    }


def _time_steps(step: Callable[[], object], clock: AttentionClock) -> float:
    for _ in range(WARM_UP_STEPS):
        step()
    clock.seconds, clock.num_calls = 0.0, 0
    began = time.perf_counter()
    for _ in range(NUM_STEPS):
        step()
    return time.perf_counter() - began


def decode_batch(
    runner: ModelRunner, slots: Sequence[int], num_context: int
) -> tuple[ScheduledBatch, dict[str, SamplingRow]]:
    """A decode step of one sequence for each of the adapter slots, over contexts of so many tokens, for `execute`."""
    cache = runner.kv_cache
    num_blocks = -(-num_context // cache.block_size)
    assert len(slots) * num_blocks <= cache.num_blocks, "the contexts do not fit the KV memory"
    sequences = tuple(
        ScheduledSequence(
            request_id=str(number),
            token_ids=(number,),
            position=num_context - 1,
            block_table=tuple(range(number * num_blocks, (number + 1) * num_blocks)),
            slot=slot,
            num_logits=1,
            samples=True,
        )
        for number, slot in enumerate(slots)
    )
    params = SamplingParams(temperature=0)
    rows = {sequence.request_id: SamplingRow(params, (0,), [], random.Random(0)) for sequence in sequences}
    return ScheduledBatch(sequences, ()), rows
