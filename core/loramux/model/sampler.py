"""Sampler: logits to tokens, every row by its own parameters and its own random numbers.

A row's token depends on that row alone: each step works along the vocabulary only, and each sampled row draws one
uniform number from its own generator and inverts its cumulative distribution with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from enum import Enum

import torch

from loramux.model.logit_edits import apply_edits, is_edited
from loramux.model.sampling_row import SamplingRow
from loramux.model.token_logprobs import SampledToken, TokenLogprob, prompt_logprobs, token_logprobs

__all__ = ["SampledToken", "Sampler", "SamplingRow", "TokenLogprob", "Unchosen", "prompt_logprobs"]

NUCLEUS_CANDIDATES = (256, 8192)
"""How many of the likeliest tokens top-p looks at, in turn; sorting a whole vocabulary is many times slower."""


class Unchosen(Enum):
    """Why no token could be chosen for a row."""

    NO_NUMBERS = "the model gave no usable numbers for it"
    NOTHING_LEFT = "no token is left that it may choose"


class Sampler:
    """Chooses the next token of every row. Holds no state: what a row needs travels in its SamplingRow."""

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | Unchosen]:
        """Choose one token per row of `logits` [num_rows, vocab] float32, which are left as they are.

        Unchosen stands for a row from which nothing can be chosen: its logits hold NaN or +inf, or every token is at
        -inf, by the model itself or by the row's own edits. It is the caller's to fail that request; its neighbours
        have their tokens.
        """
        if logits.shape[0] != len(rows):
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} sequences")
        if not rows:
            return []
        # max passes NaN on, so that a finite maximum means: no NaN, no +inf, and something to choose.
        highest, choice = logits.max(dim=-1)
        usable = torch.isfinite(highest)
        has_token_left = usable.clone()
        worked = [index for index, row in enumerate(rows) if not row.params.is_greedy or is_edited(row)]
        if worked:
            at = torch.tensor(worked, device=logits.device)
            choice[at], has_token_left[at] = _choose(logits[at], [rows[index] for index in worked])
        tokens: list[SampledToken | Unchosen] = [
            (SampledToken(token_id) if is_left else Unchosen.NOTHING_LEFT) if is_usable else Unchosen.NO_NUMBERS
            for token_id, is_usable, is_left in zip(
                choice.tolist(), usable.tolist(), has_token_left.tolist(), strict=True
            )
        ]
        _add_logprobs(tokens, logits, rows)
        return tokens


def _choose(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose on a private copy of the rows; the second tensor tells which rows still have something to choose."""
    apply_edits(logits, rows)
    highest, choice = logits.max(dim=-1)
    usable = torch.isfinite(highest)
    sampled = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    if sampled:
        at = torch.tensor(sampled, device=logits.device)
        # Subtracting the maximum first keeps small temperatures from overflowing; softmax does not see it.
        shifted = logits[at] - highest[at].unsqueeze(1)
        choice[at] = _draw(shifted, [rows[index] for index in sampled])
    return choice, usable


def _draw(shifted: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Sample from logits whose maximum is 0. Rows of NaN come out as any token in range: the caller drops them."""
    shifted /= _column([row.params.temperature for row in rows], shifted)
    _cut_top_k(shifted, [row.params.top_k for row in rows])
    probs = torch.softmax(shifted, dim=-1)
    _cut_top_p(probs, [row.params.top_p for row in rows])
    if any(row.params.min_p > 0 for row in rows):
        min_p = _column([row.params.min_p for row in rows], probs)
        probs[probs < min_p * probs.amax(dim=-1, keepdim=True)] = 0
    cumulative = probs.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    uniform = torch.tensor([[row.random.random()] for row in rows], dtype=torch.float64, device=shifted.device)
    # The first token whose cumulative exceeds the target always has a probability above 0; should the product round
    # up to the total, the token at which the total is reached is the last such one.
    drawn = torch.searchsorted(cumulative, uniform * total, right=True)
    last = torch.searchsorted(cumulative, total, right=False)
    return torch.minimum(drawn, last).squeeze(1).clamp_(max=shifted.shape[-1] - 1)


def _cut_top_k(logits: torch.Tensor, top_ks: Sequence[int]) -> None:
    """Put all tokens below the k-th largest of their row at -inf, in place; ties with it stay, as in transformers."""
    vocab_size = logits.shape[-1]
    cut = [(index, top_k) for index, top_k in enumerate(top_ks) if 0 < top_k < vocab_size]
    if not cut:
        return
    at = torch.tensor([index for index, _ in cut], device=logits.device)
    positions = torch.tensor([[top_k - 1] for _, top_k in cut], device=logits.device)
    chosen = logits[at]
    largest = torch.topk(chosen, max(top_k for _, top_k in cut), dim=-1).values
    logits[at] = chosen.masked_fill(chosen < largest.gather(1, positions), -torch.inf)


def _cut_top_p(probs: torch.Tensor, top_ps: Sequence[float]) -> None:
    """Put to 0, in place, what lies outside the smallest set of likeliest tokens that reaches top_p; ties stay."""
    vocab_size = probs.shape[-1]
    cut = [index for index, top_p in enumerate(top_ps) if top_p < 1.0]
    for num_candidates in (*(count for count in NUCLEUS_CANDIDATES if count < vocab_size), vocab_size):
        if not cut:
            return
        at = torch.tensor(cut, device=probs.device)
        top_p = torch.tensor([[top_ps[index]] for index in cut], dtype=torch.float64, device=probs.device)
        chosen = probs[at]
        largest = torch.topk(chosen, num_candidates, dim=-1).values
        num_kept = (largest.double().cumsum(dim=-1) < top_p).sum(dim=-1, keepdim=True) + 1
        is_settled = (num_kept <= num_candidates) | (num_candidates == vocab_size)
        least = largest.gather(1, num_kept.clamp(max=num_candidates) - 1)
        probs[at] = torch.where((chosen < least) & is_settled, 0, chosen)
        cut = [index for index, settled in zip(cut, is_settled.squeeze(1).tolist(), strict=True) if not settled]


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


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
