"""SamplingRow: all that choosing one sequence's next token depends on, and nothing of its neighbours."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from loramux.sampling_params import SamplingParams


class TokenHistory:
    """How often a sequence holds each token, brought up to date by the tokens that were added since last asked."""

    __slots__ = ("_num_counted", "_output_counts", "_seen")

    def __init__(self) -> None:
        self._num_counted = 0
        self._output_counts: dict[int, int] = {}
        self._seen: dict[int, None] = {}

    def output_counts(self, output_token_ids: Sequence[int]) -> dict[int, int]:
        """Tell how often each token stands in the output; the output only ever grows."""
        for token_id in output_token_ids[self._num_counted :]:
            self._output_counts[token_id] = self._output_counts.get(token_id, 0) + 1
        self._num_counted = len(output_token_ids)
        return self._output_counts

    def seen(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> Collection[int]:
        """Tell which tokens stand anywhere in prompt and output, each once."""
        if not self._seen:
            self._seen = dict.fromkeys(prompt_token_ids)
        self._seen.update(dict.fromkeys(self.output_counts(output_token_ids)))
        return self._seen.keys()


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """One sequence that wants its next token.

    Build it once per sequence and keep it: `output_token_ids` is the caller's living list, which only grows, and the
    counts behind the penalties then cost one addition per step. `random` is the sequence's own: one uniform number is
    drawn per sampled token and none for a greedy one, so that its tokens do not depend on who shares the batch.
    `eos_token_ids` are those of the tokenizer and the generation config together.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    random: random.Random
    eos_token_ids: Collection[int] = ()
    _history: TokenHistory = field(default_factory=TokenHistory, init=False, repr=False)

    def output_counts(self) -> dict[int, int]:
        """Tell how often each token stands in the output so far."""
        return self._history.output_counts(self.output_token_ids)

    def seen_token_ids(self) -> Collection[int]:
        """Tell which tokens stand in the prompt or the output so far."""
        return self._history.seen(self.prompt_token_ids, self.output_token_ids)

    def suppressed_token_ids(self) -> Collection[int]:
        """Tell which tokens must not be chosen yet because they would end the text before min_tokens."""
        if len(self.output_token_ids) >= self.params.min_tokens:
            return ()
        return (*self.eos_token_ids, *(self.params.stop_token_ids or ()))
