"""The warm-up: before an engine serves anyone, it computes once what serving will compute.

Triton compiles a kernel when it is first launched, which takes a second; here all of them are, and decode steps are
captured. The first request, and the first one of every adapter, then compile nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers.utils import logging as transformers_logging

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.config import EngineArgs
from loramux.model.decode_graphs import Capture, DecodeGraphs, graph_capture
from loramux.model.runner import ModelRunner
from loramux_kernels.backend import use_triton

logger = logging.getLogger(__name__)


def warm_up(runner: ModelRunner, args: EngineArgs) -> None:
    """Run every kind of step, and capture the decode steps; on a CPU there is nothing to do.

    Progress is told by a bar of transformers, which whoever shows the loading of weights shows too. Whatever is in a
    slot or in KV memory is lost, so nothing may be there yet.
    """
    device = runner.loaded.device
    capture = graph_capture(device)
    if capture is None and device.type != "cuda" and not use_triton(runner.kv_cache.keys[0]):
        return
    batches = list(_eager_batches(runner, args))
    graphs = None if capture is None else _graphs(runner, args, capture)
    bar = transformers_logging.tqdm(total=len(batches) + (0 if graphs is None else len(graphs)), desc="Warming up")
    with bar:
        for sequences in batches:
            _compute(runner, sequences)
            bar.update(1)
        if graphs is not None:
            try:
                for _ in graphs.capture_all():
                    bar.update(1)
            except RuntimeError as exc:  # the model looks at numbers on the host, or does what no graph can hold
                name = type(runner.loaded.model).__name__
                logger.warning("decode steps not captured model=%s reason=%r", name, str(exc))
                graphs = None
    runner.graphs = graphs


def _graphs(runner: ModelRunner, args: EngineArgs, capture: Capture) -> DecodeGraphs:
    num_slots = 0 if runner.lora is None else args.max_loras
    return DecodeGraphs(runner.loaded.model, runner.decode_inputs(args), capture, num_slots=num_slots)


def _compute(runner: ModelRunner, sequences: Sequence[ScheduledSequence]) -> None:
    output = runner.compute(sequences)
    with torch.inference_mode():
        runner.kv_cache.clear(output.kv_slots)  # another owner of these blocks must find finite numbers


def _eager_batches(runner: ModelRunner, args: EngineArgs) -> list[list[ScheduledSequence]]:
    """Steps that are not captured, with and without adapters: prompts, and tokens after short and long contexts.

    A kernel's form may depend on whether there is one row, and on whether a context is long enough to be cut.
    """
    block_size = args.block_size
    num_blocks = min(runner.kv_cache.num_blocks, runner.max_model_len // block_size)
    longest = min(args.max_num_batched_tokens, num_blocks * block_size)
    shapes = {(1, 1), (1, num_blocks), (min(2, longest), num_blocks), (longest, num_blocks)}
    return [
        [ScheduledSequence("warm-up", (0,) * num_tokens, 0, tuple(range(num_in_table)), slot, 1, samples=True)]
        for slot in ((BASE_SLOT, 0) if runner.lora is not None else (BASE_SLOT,))
        for num_tokens, num_in_table in sorted(shapes)
    ]
