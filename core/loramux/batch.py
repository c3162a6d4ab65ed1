"""ScheduledBatch: what one step computes; written by the scheduler, read by the model runner."""

from __future__ import annotations

from dataclasses import dataclass

BASE_SLOT = -1


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: compute `token_ids`, the first of them at `position`, and keep their KV.

    `block_table` holds the KV blocks of positions 0 .. position + len(token_ids) - 1. `slot` is the adapter's slot, or
    BASE_SLOT. The last `num_logits` tokens need logits: 0 inside a prompt, 1 to sample, more for prompt logprobs.
    """

    request_id: str
    token_ids: tuple[int, ...]
    position: int
    block_table: tuple[int, ...]
    slot: int
    num_logits: int
    samples: bool


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """Copy the adapter of this digest into this slot before the step runs."""

    slot: int
    digest: str


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step's work; sequences are ordered by slot, so that each adapter's rows are one slice."""

    sequences: tuple[ScheduledSequence, ...]
    slot_loads: tuple[SlotLoad, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)
