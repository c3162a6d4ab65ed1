"""LayerStack: all layers of a model as one computation, which decode steps on a CPU record and run again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from loramux.model.forward_context import ForwardContext, current_context
from loramux.model.fused.layers import Angles, Rows
from loramux_kernels.recording import Arena, Call, NotRecordable
from loramux_kernels.tape import Tape, record

logger = logging.getLogger(__name__)

Layer = Callable[[torch.Tensor, Angles], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A tape of all layers and the ending for one number of rows, and the memory of what goes in and comes out."""

    tape: Tape
    rows: torch.Tensor
    angles: Angles
    result: torch.Tensor


class LayerStack:
    """Layers each of whose result is the input of the next, and an ending; all layers are given the same angles.

    ending: the norm behind the layers, and lm_head where that follows at once.
    The first step of some number of rows whose context `is_fixed` is recorded, and the following ones run its tape,
    with the same results to the bit. With and without adapters are two tapes: which adapters, and on what rows, is
    brought up to date when it changes. The logits of the largest batch so far keep their memory. Belongs to the engine
    thread.
    """

    def __init__(self, layers: Sequence[Layer], ending: Rows) -> None:
        self._layers = layers
        self._ending = ending
        self._recorded: dict[tuple[int, bool], _Recorded] = {}
        self._inputs = Arena()
        self._halves = Arena(), Arena()  # what a layer makes is read by it and the next: every second uses one
        self._results = Arena()
        self._is_recordable = True
        self._checked: set[bool] = set()  # of what was recorded: with adapters, without
        self.num_recordings = 0
        self.num_replays = 0

    def __call__(self, rows: torch.Tensor, angles: Angles, wanted: torch.Tensor | None) -> torch.Tensor:
        """Return what the ending makes of the rows that are wanted, or of all; it is valid until the next call.

        rows: [num_tokens, hidden]. wanted: int64, their numbers; a context that `is_fixed` wants all.
        """
        context = current_context()
        if context is None or not context.is_fixed or not self._is_recordable:
            return self._compute(rows, angles, wanted)
        key = len(rows), context.segments is not None
        recorded = self._recorded.get(key)
        if recorded is not None:
            return self._run(recorded, rows, angles, context)
        try:
            self._recorded[key] = recorded = self._record(rows, angles, context)
        except NotRecordable as exc:
            logger.info("decode steps not recorded reason=%r", str(exc))
            self._is_recordable = False
            return self._compute(rows, angles, wanted)
        return recorded.result

    def _compute(self, rows: torch.Tensor, angles: Angles, wanted: torch.Tensor | None) -> torch.Tensor:
        for layer in self._layers:
            rows = layer(rows, angles)
        return self._ending(rows if wanted is None else rows[wanted])

    def _run(self, recorded: _Recorded, rows: torch.Tensor, angles: Angles, context: ForwardContext) -> torch.Tensor:
        recorded.rows.copy_(rows)
        for held, given in zip(recorded.angles, angles, strict=True):
            held.copy_(given)
        recorded.tape.renew(context.segments)
        recorded.tape.run()
        self.num_replays += 1
        return recorded.result

    def _record(self, rows: torch.Tensor, angles: Angles, context: ForwardContext) -> _Recorded:
        """Compute a step from copies of its inputs, layer by layer."""
        assert context.logit_segments is context.segments, "a tape renews both by the same segments"
        self._inputs.rewind()
        held, cos, sin = (_copy(tensor, self._inputs) for tensor in (rows, *angles))
        held_angles = cos, sin
        has_lora = context.segments is not None
        is_checked = has_lora not in self._checked  # the layers' code is the same for all numbers of rows
        calls: list[Call] = []
        result = held
        for index, layer in enumerate(self._layers):
            arena = self._halves[index % 2]
            arena.rewind()
            result, calls_of_layer = record(partial(layer, result, held_angles), arena, is_checked=is_checked)
            calls += calls_of_layer
        self._results.rewind()
        result, calls_of_ending = record(partial(self._ending, result), self._results, is_checked=is_checked)
        calls += calls_of_ending
        self._checked.add(has_lora)
        self.num_recordings += 1
        return _Recorded(Tape(calls, context.segments), held, held_angles, result)


def _copy(tensor: torch.Tensor, arena: Arena) -> torch.Tensor:
    return arena.empty(tensor.shape, tensor.dtype).copy_(tensor)
