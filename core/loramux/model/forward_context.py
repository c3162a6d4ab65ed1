"""ForwardContext: what the attention and LoRA layers of one forward pass need beyond their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from loramux.model.kv_cache import KVCache
from loramux_kernels import AnySegments, PrefillBatch


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one new token each: of similar length where torch may serve, which reads the padding; else all.

    rows: int64 [n], their rows of the batch. block_ids: int64 [n, max_blocks], padded with a block of the same
    sequence: what others write in this step may not be finite.
    lengths: int64 [n], tokens of each sequence, the new one included.
    """

    rows: torch.Tensor
    block_ids: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """For the probe: the window sizes that the model asked masks for, and those that its layers passed on."""

    asked: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)


@dataclass(slots=True)
class ForwardContext:
    """One step's batch as the layers see it; built by the runner, read by every layer, gone after the pass.

    kv_slots: int64 [num_tokens], where each token's key and value go: block * block_size + offset.
    segments / logit_segments: which rows of the batch, and of the rows that reach lm_head, belong to which adapter
    slot; None when no row has an adapter. prefills: sequences with several new tokens, None when there are none.
    masks: scratch of the attention function, per window size. is_fixed: whether loops of numba serve, the tensors of
    another step of as many rows are these, at the same addresses, one of other rows or adapters has other segments,
    and all rows reach lm_head, with the same segments.
    """

    kv_cache: KVCache
    kv_slots: torch.Tensor
    prefills: PrefillBatch | None
    decodes: tuple[DecodeGroup, ...]
    segments: AnySegments | None = None
    logit_segments: AnySegments | None = None
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    windows: WindowRecord | None = None
    is_fixed: bool = False
    _angles: dict[int, tuple[torch.Tensor, torch.Tensor, object]] = field(default_factory=dict)

    def angle_rows(self, angles: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [1, num_tokens, head_dim] as contiguous rows; all layers of a kind are given one pair."""
        if id(angles) not in self._angles:
            cos, sin = (one.reshape(-1, one.shape[-1]).contiguous() for one in angles)
            self._angles[id(angles)] = (cos, sin, angles)  # what is kept alive keeps its id
        return self._angles[id(angles)][:2]


class _Current:
    """The pass under way on the engine thread; one at a time."""

    def __init__(self) -> None:
        self.context: ForwardContext | None = None


_current = _Current()


def current_context() -> ForwardContext | None:
    """Return the context of the forward pass under way, None outside of one."""
    return _current.context


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make `context` current for one forward pass; refuses to nest."""
    if _current.context is not None:
        raise RuntimeError("a forward pass is already under way")
    _current.context = context
    try:
        yield
    finally:
        _current.context = None
