"""Drawing: one token of each row by its own temperature, cuts and random number.

All three cuts keep what is at least as likely as some token of the row, so each comes down to a threshold; ties with
it stay, as in transformers. Weights are probabilities up to a factor: the likeliest token of a row has 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loramux.model.blocks import Blocks
from loramux.model.sampling_row import SamplingRow

NUCLEUS_CANDIDATES = (32, 128, 1024, 8192)
"""How many of the likeliest tokens top-p looks at, in turn; sorting a whole vocabulary is many times slower."""


def draw(logits: torch.Tensor, highest: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Draw a token of each row of `logits` [num_rows, vocab], which are left as they are; `highest` are their maxima.

    A row draws one uniform number and inverts its cumulative distribution with it, so its token depends on that row
    alone. Rows of NaN come out as any token in range: the caller drops them.
    """
    params = [row.params for row in rows]
    # Subtracting the maximum first keeps small temperatures from overflowing.
    values = logits.float() - highest.float().unsqueeze(1)
    values.div_(_column([each.temperature for each in params], values)).exp_()
    weights = Blocks(values)
    thresholds = _top_k_thresholds(weights, [each.top_k for each in params])
    thresholds = torch.maximum(thresholds, _top_p_thresholds(weights, [each.top_p for each in params], thresholds))
    thresholds = torch.maximum(thresholds, _column([each.min_p for each in params], values))
    uniform = torch.tensor([[row.random.random()] for row in rows], dtype=torch.float64, device=values.device)
    return _invert(weights, thresholds, uniform)


def _top_k_thresholds(weights: Blocks, top_ks: Sequence[int]) -> torch.Tensor:
    """The weight of the k-th likeliest token of each row that has a top_k, 0 for the others: [num_rows, 1]."""
    thresholds = weights.values.new_zeros(len(top_ks), 1)
    cut = [(index, top_k) for index, top_k in enumerate(top_ks) if 0 < top_k < weights.width]
    if cut:
        at = torch.tensor([index for index, _ in cut], device=thresholds.device)
        places = torch.tensor([[top_k - 1] for _, top_k in cut], device=thresholds.device)
        thresholds[at] = weights.rows(at).largest(max(top_k for _, top_k in cut)).gather(1, places)
    return thresholds


def _top_p_thresholds(weights: Blocks, top_ps: Sequence[float], cut_off: torch.Tensor) -> torch.Tensor:
    """The least weight in the smallest set of likeliest tokens that reaches top_p, 0 for rows without a top_p.

    What lies below `cut_off` [num_rows, 1] does not count.
    """
    thresholds = torch.zeros_like(cut_off)
    cut = [index for index, top_p in enumerate(top_ps) if top_p < 1]
    totals = weights.sums(cut_off).sum(dim=-1, keepdim=True) if cut else cut_off
    for num_candidates in (*(count for count in NUCLEUS_CANDIDATES if count < weights.width), weights.width):
        if not cut:
            break
        at = torch.tensor(cut, device=thresholds.device)
        wanted = torch.tensor([[top_ps[index]] for index in cut], dtype=torch.float64, device=thresholds.device)
        wanted *= totals[at]
        candidates = weights.rows(at).largest(num_candidates)
        num_kept = (candidates.double().cumsum(dim=-1) < wanted).sum(dim=-1, keepdim=True) + 1
        is_settled = (num_kept <= num_candidates) | (num_candidates == weights.width)
        least = candidates.gather(1, num_kept.clamp(max=num_candidates) - 1)
        thresholds[at] = torch.where(is_settled, least, 0)
        cut = [index for index, settled in zip(cut, is_settled.squeeze(1).tolist(), strict=True) if not settled]
    return thresholds


def _invert(weights: Blocks, thresholds: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative weight of each row first exceeds its share `uniform` [num_rows, 1] of all.

    First the block, then the token within it: summing a vocabulary token by token is many times slower.
    """
    cumulative = weights.sums(thresholds).cumsum(dim=-1)  # [num_rows, num_blocks]
    target = uniform * cumulative[:, -1:]
    block = _first_above(cumulative, target)  # [num_rows, 1]
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_(min=0)), 0)
    within = weights.read(block, thresholds)
    place = _first_above(within.double().cumsum(dim=-1), target - before)
    return (block * weights.size + place).squeeze(1).clamp_(max=weights.width - 1)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place of each row that exceeds its target; it always adds something to the sum.

    Should rounding have put the target at the total or beyond it, the place at which the total is reached is the last
    one that adds something.
    """
    drawn = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    return torch.minimum(drawn, last).clamp_(max=cumulative.shape[-1] - 1)  # sums of NaN exceed nothing


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
