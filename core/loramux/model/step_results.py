"""What one step brings to each of its sequences: from logits to tokens and log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from loramux.batch import ScheduledSequence
from loramux.model.sampler import SampledToken, Sampler, SamplingRow, Unchosen, prompt_logprobs


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one forward pass left on the device; valid until the next one.

    logits: [num logit rows, vocab], in batch order. kv_slots: int64 [n], where keys and values went; are_usable: bool
    [n], whether they are finite there.
    """

    logits: torch.Tensor
    kv_slots: torch.Tensor
    are_usable: torch.Tensor


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What one step brought to one sequence.

    sampled: the next token, None when the prompt is not finished. prompt_logprobs: for the prompt tokens that follow
    the positions computed in this step. failed: why this sequence got no token that it should have got.
    """

    sampled: SampledToken | None = None
    prompt_logprobs: tuple[SampledToken | None, ...] = ()
    failed: Unchosen | None = None


def choose_tokens(
    sampler: Sampler,
    sequences: Sequence[ScheduledSequence],
    logits: torch.Tensor,
    rows: Mapping[str, SamplingRow],
) -> dict[str, SequenceResult]:
    """Sample what a step's logits [num logit rows, vocab] are for; `rows` has the sampling state of each sequence."""
    last_rows: list[int] = []
    sampling: list[ScheduledSequence] = []
    prompt: dict[str, tuple[SampledToken | None, ...]] = {}
    row = 0
    for sequence in sequences:
        params = rows[sequence.request_id].params
        if sequence.num_logits and params.prompt_logprobs is not None:
            prompt[sequence.request_id] = _prompt_logprobs(sequence, logits[row:], rows[sequence.request_id])
        row += sequence.num_logits
        if sequence.samples:
            last_rows.append(row - 1)
            sampling.append(sequence)
    chosen = logits if last_rows == list(range(len(logits))) else logits[last_rows]
    sampled = sampler.sample(chosen, [rows[sequence.request_id] for sequence in sampling])
    tokens = {sequence.request_id: token for sequence, token in zip(sampling, sampled, strict=True)}
    results = {}
    for sequence in sequences:
        token = tokens.get(sequence.request_id)
        results[sequence.request_id] = SequenceResult(
            sampled=token if isinstance(token, SampledToken) else None,
            prompt_logprobs=prompt.get(sequence.request_id, ()),
            failed=token if isinstance(token, Unchosen) else None,
        )
    return results


def _prompt_logprobs(
    sequence: ScheduledSequence, logits: torch.Tensor, row: SamplingRow
) -> tuple[SampledToken | None, ...]:
    assert row.params.prompt_logprobs is not None
    first = sequence.position + len(sequence.token_ids) - sequence.num_logits + 1
    following = row.prompt_token_ids[first : first + sequence.num_logits]
    if not following:
        return ()
    return tuple(prompt_logprobs(logits[: len(following)], following, row.params.prompt_logprobs))
