"""From a ScheduledBatch to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from loramux.batch import BASE_SLOT, ScheduledSequence
from loramux.model.forward_context import DecodeGroup, ForwardContext
from loramux.model.kv_cache import KVCache
from loramux_kernels import PrefillBatch, Segments
from loramux_kernels.backend import use_triton

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """token_ids, positions: int64 [1, num_tokens]. logit_rows: int64, the rows that reach lm_head, in batch order."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor
    context: ForwardContext


@dataclass(frozen=True, slots=True)
class BlockTables:
    """The blocks of every sequence; in `padded` [num_sequences, most], its first follows its last."""

    padded: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, sequences: Sequence[ScheduledSequence]) -> BlockTables:
        lengths = np.array([len(sequence.block_table) for sequence in sequences])
        padded = np.empty((len(sequences), lengths.max()), dtype=np.int64)
        for row, sequence in zip(padded, sequences, strict=True):
            row[: len(sequence.block_table)] = sequence.block_table
            row[len(sequence.block_table) :] = sequence.block_table[0]
        return cls(padded, lengths)

    def rows(self, indices: Sequence[int]) -> IntArray:
        """The tables of some sequences: [n, most of these]."""
        return self.padded[indices, : self.lengths[indices].max()]

    def kv_slots(self, owners: IntArray, positions: IntArray, block_size: int) -> IntArray:
        """Where each token's key and value are kept; owners and positions: [num_tokens]."""
        slots: IntArray = self.padded[owners, positions // block_size] * block_size + positions % block_size
        return slots


def build_inputs(
    sequences: Sequence[ScheduledSequence], kv_cache: KVCache, device: torch.device, *, has_lora: bool
) -> BatchInputs:
    """Flatten the sequences, in their order, into one row of tokens. Sequences of one slot must be adjacent."""
    lengths = np.array([len(sequence.token_ids) for sequence in sequences])
    num_logits = np.array([sequence.num_logits for sequence in sequences])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    owners = np.repeat(np.arange(len(sequences)), lengths)  # which sequence each token is of
    rows = np.arange(len(owners))
    token_ids = np.fromiter(chain.from_iterable(s.token_ids for s in sequences), np.int64, count=len(owners))
    positions = rows + (np.array([sequence.position for sequence in sequences]) - starts)[owners]
    logit_rows = np.flatnonzero(rows >= (ends - num_logits)[owners])
    tables = BlockTables.of(sequences)
    kv_slots = tables.kv_slots(owners, positions, kv_cache.block_size)
    slots = _brought(kv_slots, device)
    context = ForwardContext(
        kv_cache=kv_cache,
        kv_slots=slots,
        prefills=_prefills(sequences, starts, tables, device),
        decodes=tuple(_decodes(sequences, starts, tables, device, is_padding_read=not use_triton(slots))),
        segments=segments_of(sequences, lengths) if has_lora else None,
        logit_segments=segments_of(sequences, num_logits) if has_lora else None,
    )
    return BatchInputs(
        token_ids=_brought(token_ids, device)[None],
        positions=_brought(positions, device)[None],
        logit_rows=_brought(logit_rows, device),
        context=context,
    )


def _brought(numbers: IntArray, device: torch.device) -> torch.Tensor:
    """The numbers on the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _prefills(
    sequences: Sequence[ScheduledSequence], starts: IntArray, tables: BlockTables, device: torch.device
) -> PrefillBatch | None:
    chunks = [index for index, sequence in enumerate(sequences) if len(sequence.token_ids) > 1]
    if not chunks:
        return None
    return PrefillBatch(
        starts=tuple(int(starts[index]) for index in chunks),
        counts=tuple(len(sequences[index].token_ids) for index in chunks),
        contexts=tuple(sequences[index].position for index in chunks),
        block_tables=_brought(tables.rows(chunks), device),
    )


def _decodes(
    sequences: Sequence[ScheduledSequence],
    starts: IntArray,
    tables: BlockTables,
    device: torch.device,
    *,
    is_padding_read: bool,
) -> list[DecodeGroup]:
    """Group single-token sequences by the power of two of their number of blocks, so that padding stays below half.

    Triton's kernels read no padding: there one group, and so one launch, has them all.
    """
    members: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        if len(sequence.token_ids) == 1:
            members.setdefault((len(sequence.block_table) - 1).bit_length() if is_padding_read else 0, []).append(index)
    return [
        DecodeGroup(
            rows=_brought(starts[indices], device),
            block_ids=_brought(tables.rows(indices), device),
            lengths=_brought(np.array([sequences[index].position + 1 for index in indices]), device),
        )
        for indices in members.values()
    ]


def segments_of(sequences: Sequence[ScheduledSequence], lengths: Sequence[int] | IntArray) -> Segments | None:
    """One segment per adapter slot; None when no row has an adapter."""
    slots: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    row = 0
    for sequence, length in zip(sequences, (int(length) for length in lengths), strict=True):
        if sequence.slot != BASE_SLOT and length:
            if slots and slots[-1] == sequence.slot:
                counts[-1] += length
            else:
                slots.append(sequence.slot)
                starts.append(row)
                counts.append(length)
        row += length
    return Segments(tuple(slots), tuple(starts), tuple(counts), num_rows=row) if slots else None
