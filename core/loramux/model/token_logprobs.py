"""Log-probabilities of chosen tokens and of their strongest rivals, under the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

CHUNK_ROWS = 128
"""Prompt rows per log-softmax: it needs as much memory again as its logits, and a vocabulary is wide."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability; `rank` is 1 + the number of tokens that are strictly more likely."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token. `logprob`, `rank` and `top` (the most likely tokens, best first) only when they were asked for.

    Log-probabilities are those of the raw logits: before bias, penalties, temperature and cuts.
    """

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[TokenLogprob, ...] = ()


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], k: int) -> list[SampledToken]:
    """Look up one token per row of `logits` [num_rows, vocab], with its rank and the `k` most likely tokens."""
    if not token_ids:
        return []
    logprobs = torch.log_softmax(logits.float(), dim=-1)  # [num_rows, vocab]
    chosen = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    of_chosen = logprobs.gather(1, chosen)  # [num_rows, 1]
    ranks = (logprobs > of_chosen).sum(dim=-1) + 1
    top = torch.topk(logprobs, min(k, logits.shape[-1]), dim=-1)
    columns = (of_chosen.squeeze(1).tolist(), ranks.tolist(), top.indices.tolist(), top.values.tolist())
    return [
        SampledToken(token_id, logprob, rank, _ranked(top_ids, top_logprobs))
        for token_id, logprob, rank, top_ids, top_logprobs in zip(token_ids, *columns, strict=True)
    ]


def prompt_logprobs(logits: torch.Tensor, next_token_ids: Sequence[int], k: int) -> list[SampledToken | None]:
    """Look up, for each prompt position, the token that does follow; `logits` is [num_positions, vocab].

    None stands where the logits are not finite, so that one bad position does not hide the others.
    """
    if len(next_token_ids) != logits.shape[0]:
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(next_token_ids)} tokens")
    found: list[SampledToken | None] = []
    for start in range(0, len(next_token_ids), CHUNK_ROWS):
        chunk = logits[start : start + CHUNK_ROWS]
        usable = torch.isfinite(chunk.amax(dim=-1)).tolist()
        tokens = token_logprobs(chunk, next_token_ids[start : start + CHUNK_ROWS], k)
        found += [token if is_usable else None for token, is_usable in zip(tokens, usable, strict=True)]
    return found


def _ranked(token_ids: list[int], logprobs: list[float]) -> tuple[TokenLogprob, ...]:
    """Order by probability, equal ones by token id, and give equal ones the same rank."""
    ranked: list[TokenLogprob] = []
    for logprob, token_id in sorted(zip(logprobs, token_ids, strict=True), key=lambda pair: (-pair[0], pair[1])):
        is_tie = bool(ranked) and ranked[-1].logprob == logprob
        ranked.append(TokenLogprob(token_id, logprob, ranked[-1].rank if is_tie else len(ranked) + 1))
    return tuple(ranked)
