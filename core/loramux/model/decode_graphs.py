"""DecodeGraphs: decode steps captured once, before anyone is served, and replayed ever after.

A step of one new token per sequence is some thousand launches, which cost a GPU more than the work in them; a replay is
one. There are two families of graphs, without adapters and with any number of them, and in each one graph per bucket of
rows. Which adapter a row has is in tensors that a graph reads, so placing an adapter captures nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from loramux.batch import ScheduledSequence
from loramux.model.batch_inputs import segments_of
from loramux.model.decode_inputs import DecodeInputs, bucket_sizes, is_decode
from loramux.model.forward_context import forward_context
from loramux.model.step_results import StepOutput
from loramux_kernels import SegmentBuffer
from loramux_kernels.backend import use_triton


class Replay(Protocol):
    """A computation that can be done again over the memory that it was captured with."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Replay]
"""Captures a computation, which has run once before; raises RuntimeError where it cannot be captured."""


class CudaGraphs:
    """A Capture that makes CUDA graphs, all of which share one pool of memory: no two are replayed at once."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            # other threads may pin memory and copy adapters meanwhile: only this thread's calls are checked
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        return graph


def graph_capture(device: torch.device) -> Capture | None:
    """How steps on this device are captured; None where they are not: on a CPU, or with kernels other than Triton's.

    The reference forms read segments on the host, which a graph would keep as they were.
    """
    if device.type != "cuda" or not use_triton(torch.empty(0, device=device)):
        return None
    return CudaGraphs()


class DecodeGraphs:
    """The captured decode steps of one model. Owned by the engine thread; `capture_all` comes first.

    num_slots: of adapters, 0 for a model without.
    """

    def __init__(self, model: PreTrainedModel, inputs: DecodeInputs, capture: Capture, *, num_slots: int) -> None:
        self._model = model
        self._inputs = inputs
        self._capture = capture
        self._families = (False, True) if num_slots else (False,)
        self._sizes = bucket_sizes(inputs.max_rows)
        sizes = self._sizes if num_slots else ()
        self._segments = {size: SegmentBuffer(size, num_slots, inputs.device) for size in sizes}
        self._graphs: dict[tuple[bool, int], Replay] = {}
        self._logits: torch.Tensor | None = None
        self._are_usable = torch.empty(inputs.max_rows, dtype=torch.bool, device=inputs.device)
        self.num_captures = 0
        self.num_replays = 0

    def __len__(self) -> int:
        """How many graphs there are to capture."""
        return len(self._families) * len(self._sizes)

    @torch.inference_mode()
    def capture_all(self) -> Iterator[None]:
        """Capture every graph, one per item: the largest first, whose memory the others use again.

        Each is computed once before, which compiles what it needs. Raises RuntimeError for a model that cannot be
        captured.
        """
        for num_rows in reversed(self._sizes):
            for has_lora in self._families:
                self._inputs.fill((), num_rows)
                self._compute(num_rows, has_lora=has_lora)
                self._graphs[has_lora, num_rows] = self._capture(self._bound(num_rows, has_lora=has_lora))
                self.num_captures += 1
                yield

    def can_run(self, sequences: Sequence[ScheduledSequence]) -> bool:
        """Whether a step was captured: one new token per sequence, each with its logits."""
        return len(sequences) <= self._sizes[-1] and is_decode(sequences)

    def run(self, sequences: Sequence[ScheduledSequence]) -> StepOutput:
        """Compute a step that `can_run`, by one copy of its inputs, one of its segments, and one replay."""
        num_rows = self._sizes[bisect_left(self._sizes, len(sequences))]
        segments = segments_of(sequences, [1] * len(sequences))
        self._inputs.fill(sequences, num_rows)
        if segments is not None:
            self._segments[num_rows].fill(segments)
        self._graphs[segments is not None, num_rows].replay()
        self.num_replays += 1
        assert self._logits is not None
        count = len(sequences)
        return StepOutput(self._logits[:count], self._inputs.kv_slots[:num_rows], self._are_usable[:num_rows])

    def _bound(self, num_rows: int, *, has_lora: bool) -> Callable[[], None]:
        return lambda: self._compute(num_rows, has_lora=has_lora)

    def _compute(self, num_rows: int, *, has_lora: bool) -> None:
        """What a graph does, from the static inputs to the static outputs."""
        inputs = self._inputs.step(num_rows, self._segments[num_rows] if has_lora else None)
        with forward_context(inputs.context):
            logits = self._model(
                input_ids=inputs.token_ids, position_ids=inputs.positions, use_cache=False, logits_to_keep=0
            ).logits[0]  # [num_rows, vocab]
        if self._logits is None:  # by the first pass, which is of the largest bucket and not captured
            self._logits = torch.empty_like(logits)
        self._logits[:num_rows].copy_(logits)
        kv_slots = inputs.context.kv_slots
        self._are_usable[:num_rows].copy_(inputs.context.kv_cache.are_usable(kv_slots))
