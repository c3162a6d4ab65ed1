"""Logit edits: bias, penalties and forbidden tokens, which change what is most likely, greedy or not.

Each edit touches few tokens of few rows, so all of them are gathered as flat (row, token, amount) lists and written
with one indexed operation each. Token ids that the logits do not have are left out: a model's embedding may be wider
than its head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from loramux.model.sampling_row import SamplingRow
from loramux.model.token_bits import unpack
from loramux.text.grammar import TokenBits


def is_edited(row: SamplingRow) -> bool:
    """Whether any edit applies to this row at this step."""
    params = row.params
    return (
        params.logit_bias is not None
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or row.is_confined
        or bool(row.suppressed_token_ids())
    )


def apply_edits(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Change `logits` [num_rows, vocab] in place: bias, then penalties, then tokens that must not come.

    The repetition penalty divides a positive logit and multiplies a negative one, over prompt and output, as in
    https://arxiv.org/abs/1909.05858; presence and frequency penalties are subtracted and look at the output only.
    """
    vocab_size = logits.shape[-1]
    allowed: dict[int, TokenBits] = {}
    bias, repetition, subtraction, suppression = (_Edits(vocab_size) for _ in range(4))
    for index, row in enumerate(rows):
        params = row.params
        if params.logit_bias is not None:
            bias.add(index, params.logit_bias.items())
        if params.repetition_penalty != 1.0:
            repetition.add(index, ((token_id, params.repetition_penalty) for token_id in row.seen_token_ids()))
        if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            presence, frequency = params.presence_penalty, params.frequency_penalty
            counts = row.output_counts().items()
            subtraction.add(index, ((token_id, presence + frequency * count) for token_id, count in counts))
        suppression.add(index, ((token_id, 0.0) for token_id in row.suppressed_token_ids()))
        if (bits := row.allowed_tokens()) is not None:
            allowed[index] = bits

    if bias:
        at, amounts = bias.tensors(logits)
        logits[at] += amounts
    if repetition:
        at, amounts = repetition.tensors(logits)
        before = logits[at]
        logits[at] = torch.where(before > 0, before / amounts, before * amounts)
    if subtraction:
        at, amounts = subtraction.tensors(logits)
        logits[at] -= amounts
    if suppression:
        at, _ = suppression.tensors(logits)
        logits[at] = -torch.inf
    if allowed:
        rows_at = torch.tensor(list(allowed), device=logits.device)
        is_allowed = unpack(list(allowed.values()), vocab_size, logits.device)
        logits[rows_at] = logits[rows_at].masked_fill(~is_allowed, -torch.inf)


@dataclass(slots=True)
class _Edits:
    """Amounts for single logits. Within one kind of edit a token stands once per row, so writes never collide."""

    vocab_size: int
    rows: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, row: int, amounts: Iterable[tuple[int, float]]) -> None:
        for token_id, amount in amounts:
            if token_id < self.vocab_size:
                self.rows.append(row)
                self.token_ids.append(token_id)
                self.amounts.append(amount)

    def tensors(self, like: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        at = torch.tensor([self.rows, self.token_ids], device=like.device)
        return (at[0], at[1]), torch.tensor(self.amounts, dtype=like.dtype, device=like.device)
