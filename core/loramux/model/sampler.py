"""Sampler: logits to tokens, every row by its own parameters and its own random numbers.

A row's token depends on that row alone: each step works along the vocabulary only, and each sampled row draws from its
own generator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

import torch

from loramux.model.blocks import largest
from loramux.model.drawing import draw
from loramux.model.logit_edits import apply_edits, is_edited
from loramux.model.sampling_row import SamplingRow
from loramux.model.token_logprobs import SampledToken, TokenLogprob, prompt_logprobs, token_logprobs

__all__ = ["SampledToken", "Sampler", "SamplingRow", "TokenLogprob", "Unchosen", "prompt_logprobs"]


class Unchosen(Enum):
    """Why no token could be chosen for a row."""

    NO_NUMBERS = "the model gave no usable numbers for it"
    NOTHING_LEFT = "no token is left that it may choose"


class Sampler:
    """Chooses the next token of every row. Holds no state: what a row needs travels in its SamplingRow."""

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | Unchosen]:
        """Choose one token per row of `logits` [num_rows, vocab], which are left as they are.

        Unchosen stands for a row from which nothing can be chosen: its logits hold NaN or +inf, or every token is at
        -inf, by the model itself or by the row's own edits. It is the caller's to fail that request; its neighbours
        have their tokens.
        """
        if logits.shape[0] != len(rows):
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} sequences")
        if not rows:
            return []
        # max passes NaN on, so that a finite maximum means: no NaN, no +inf, and something to choose.
        highest, choice = largest(logits)
        usable = torch.isfinite(highest)
        has_token_left = usable.clone()
        edited = [index for index, row in enumerate(rows) if is_edited(row)]
        if edited:
            at = torch.tensor(edited, device=logits.device)
            choice[at], has_token_left[at] = _choose_edited(logits[at].float(), [rows[index] for index in edited])
        drawn = [index for index, row in enumerate(rows) if not row.params.is_greedy and index not in edited]
        if drawn:
            at = torch.tensor(drawn, device=logits.device)
            chosen = logits if len(drawn) == len(rows) else logits[at]
            choice[at] = draw(chosen, highest[at], [rows[index] for index in drawn])
        tokens: list[SampledToken | Unchosen] = [
            (SampledToken(token_id) if is_left else Unchosen.NOTHING_LEFT) if is_usable else Unchosen.NO_NUMBERS
            for token_id, is_usable, is_left in zip(
                choice.tolist(), usable.tolist(), has_token_left.tolist(), strict=True
            )
        ]
        _add_logprobs(tokens, logits, rows)
        return tokens


def _choose_edited(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose on a private float32 copy of the rows; the second tensor tells which have something left to choose."""
    apply_edits(logits, rows)
    highest, choice = largest(logits)
    sampled = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    if sampled:
        at = torch.tensor(sampled, device=logits.device)
        choice[at] = draw(logits[at], highest[at], [rows[index] for index in sampled])
    return choice, torch.isfinite(highest)


def _add_logprobs(tokens: list[SampledToken | Unchosen], logits: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """Fill in log-probabilities where asked for, rows of equal k together: ties must not depend on the neighbours."""
    by_k: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.params.logprobs is not None and isinstance(token, SampledToken):
            by_k[row.params.logprobs].append((index, token.token_id))
    for k, asked in by_k.items():
        at = torch.tensor([index for index, _ in asked], device=logits.device)
        found = token_logprobs(logits[at], [token_id for _, token_id in asked], k)
        for (index, _), token in zip(asked, found, strict=True):
            tokens[index] = token
