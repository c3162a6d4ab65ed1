"""DecodeInputs: the inputs of decode steps at fixed addresses, which graphs and tapes read again at every replay.

A step is filled in on the host, and brought over to a GPU in one copy. Rows that pad a batch to its bucket are
sequences of their own, in scratch blocks of the KV cache: what they compute changes nothing and is read by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from loramux.batch import ScheduledSequence
from loramux.model.batch_inputs import BatchInputs, segments_of
from loramux.model.forward_context import DecodeGroup, ForwardContext
from loramux.model.kv_cache import NUM_SCRATCH_SLOTS, KVCache
from loramux_kernels import AnySegments, Segments

_FIELDS = ("token_ids", "positions", "kv_slots", "lengths", "rows")


def is_decode(sequences: Sequence[ScheduledSequence]) -> bool:
    """Whether a step is one new token per sequence, each with its logits."""
    return all(len(sequence.token_ids) == sequence.num_logits == 1 for sequence in sequences)


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """How many rows a captured step may have: 1, 2, 4, then multiples of 8; at most NUM_SCRATCH_SLOTS pad it."""
    return (*(size for size in (1, 2, 4) if size < max_rows), *range(8, max_rows, 8), max_rows)


class DecodeInputs:
    """The tensors of up to `max_rows` sequences with one new token each; views of one buffer on the device.

    max_blocks: KV blocks of the longest sequence. Owned by the engine thread.
    """

    def __init__(self, kv_cache: KVCache, *, max_rows: int, max_blocks: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self.device = device
        self._kv_cache = kv_cache
        self._num_fields = (
            len(_FIELDS) * max_rows
        )  # they come first: a copy takes no more block tables than it has rows
        self._max_blocks = max_blocks
        is_cuda = device.type == "cuda"
        num_numbers = self._num_fields + max_rows * max_blocks
        self._host_buffer = torch.zeros(num_numbers, dtype=torch.int64, pin_memory=is_cuda)
        self._device_buffer = torch.zeros_like(self._host_buffer, device=device) if is_cuda else self._host_buffer
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        host = self._host_buffer.numpy()
        self._host_fields = dict(zip(_FIELDS, host[: self._num_fields].reshape(-1, max_rows), strict=True))
        self._host_tables = host[self._num_fields :].reshape(max_rows, max_blocks)
        self._host_fields["rows"][:] = np.arange(max_rows)
        fields = self._device_buffer[: self._num_fields].view(-1, max_rows)
        self._fields: dict[str, torch.Tensor] = dict(zip(_FIELDS, fields, strict=True))
        self._tables = self._device_buffer[self._num_fields :].view(max_rows, max_blocks)
        self._segments: Segments | None = None
        self._written_tables: list[tuple[int, ...]] = [()] * max_rows  # on the host, by row
        self._padding = _padding_rows(kv_cache, max_rows)

    def fill(self, sequences: Sequence[ScheduledSequence], num_rows: int) -> None:
        """Make these sequences, one new token each, the first rows of a batch of `num_rows`; the others pad it.

        Returns before the copy is done: what reads it comes after it on the same stream.
        """
        if self._copied is not None:
            self._copied.synchronize()  # done since the last step; the host buffer must not change under a copy
        fields, tables = self._host_fields, self._host_tables
        for row, sequence in enumerate(sequences):
            table = sequence.block_table
            if table != self._written_tables[row]:  # which most are not: a block lasts for many tokens
                self._written_tables[row] = ()  # should this be interrupted
                tables[row, len(table) :] = table[0]  # what others write in this step may not be finite
                tables[row, : len(table)] = table
                self._written_tables[row] = table
        count = len(sequences)
        positions = fields["positions"][:count]
        positions[:] = [sequence.position for sequence in sequences]
        block_size = self._kv_cache.block_size
        blocks = tables[np.arange(count), positions // block_size]
        fields["token_ids"][:count] = [sequence.token_ids[0] for sequence in sequences]
        fields["kv_slots"][:count] = blocks * block_size + positions % block_size
        fields["lengths"][:count] = positions + 1
        self._pad(count, num_rows)
        self._copy(num_rows)

    def batch(self, sequences: Sequence[ScheduledSequence], *, has_lora: bool) -> BatchInputs:
        """Fill in a step of just these sequences, one new token each, on a CPU: its context `is_fixed`."""
        self.fill(sequences, len(sequences))
        segments = segments_of(sequences, [1] * len(sequences)) if has_lora else None
        if segments != self._segments:
            self._segments = segments
        inputs = self.step(len(sequences), self._segments)
        inputs.context.is_fixed = True
        return inputs

    def forget_segments(self) -> None:
        """Give the next batch segments of its own: a slot has another adapter."""
        self._segments = None

    @property
    def kv_slots(self) -> torch.Tensor:
        """Where the keys and values of each row go: int64 [max_rows]."""
        return self._fields["kv_slots"]

    def step(self, num_rows: int, segments: AnySegments | None) -> BatchInputs:
        """The first `num_rows` rows as a step takes them; all of them reach lm_head."""
        tensors = {name: field[:num_rows] for name, field in self._fields.items()}
        group = DecodeGroup(rows=tensors["rows"], block_ids=self._tables[:num_rows], lengths=tensors["lengths"])
        context = ForwardContext(
            kv_cache=self._kv_cache,
            kv_slots=tensors["kv_slots"],
            prefills=None,
            decodes=(group,),
            segments=segments,
            logit_segments=segments,
        )
        return BatchInputs(tensors["token_ids"][None], tensors["positions"][None], tensors["rows"], context)

    def _pad(self, first: int, num_rows: int) -> None:
        block_size = self._kv_cache.block_size
        kv_slots = self._padding[: num_rows - first]
        fields, tables = self._host_fields, self._host_tables
        fields["token_ids"][first:num_rows] = 0
        fields["positions"][first:num_rows] = kv_slots % block_size
        fields["kv_slots"][first:num_rows] = kv_slots
        fields["lengths"][first:num_rows] = kv_slots % block_size + 1
        tables[first:num_rows] = (kv_slots // block_size)[:, None]
        self._written_tables[first:num_rows] = [()] * (num_rows - first)

    def _copy(self, num_rows: int) -> None:
        if self._device_buffer is self._host_buffer:
            return
        used = self._num_fields + num_rows * self._max_blocks
        self._device_buffer[:used].copy_(self._host_buffer[:used], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _padding_rows(kv_cache: KVCache, max_rows: int) -> np.ndarray:
    """Where the keys and values of padding rows go: int64 [max_rows]; only a warm-up has more than there are slots."""
    return kv_cache.num_blocks * kv_cache.block_size + np.arange(max_rows, dtype=np.int64) % NUM_SCRATCH_SLOTS
