"""SamplingRow: all that choosing one sequence's next token depends on, and nothing of its neighbours."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from loramux.model.token_bits import difference, intersection, pack
from loramux.sampling_params import SamplingParams
from loramux.text.grammar import GrammarMatcher, TokenBits


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
    `eos_token_ids` are those of the tokenizer and the generation config together. `bad_words` are encoded words, none
    of which may be completed; `grammar` stands where the output ends.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    random: random.Random
    eos_token_ids: Collection[int] = ()
    bad_words: Sequence[tuple[int, ...]] = ()
    grammar: GrammarMatcher | None = None
    _history: TokenHistory = field(default_factory=TokenHistory, init=False, repr=False)
    _allowed: TokenBits | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Bring the allowed token ids to bits, once."""
        allowed = self.params.allowed_token_ids
        object.__setattr__(self, "_allowed", None if allowed is None else pack(allowed))

    @property
    def is_confined(self) -> bool:
        """Whether only some tokens may be chosen."""
        return self._allowed is not None or self.grammar is not None

    def output_counts(self) -> dict[int, int]:
        """Tell how often each token stands in the output so far."""
        return self._history.output_counts(self.output_token_ids)

    def seen_token_ids(self) -> Collection[int]:
        """Tell which tokens stand in the prompt or the output so far."""
        return self._history.seen(self.prompt_token_ids, self.output_token_ids)

    def suppressed_token_ids(self) -> Collection[int]:
        """Tell which tokens must not be chosen now: they would end the text before min_tokens, or a banned word."""
        suppressed = [word[-1] for word in self.bad_words if self._is_about_to_end(word)]
        if self.grammar is None and self._is_short:
            suppressed += (*self.eos_token_ids, *(self.params.stop_token_ids or ()))
        return suppressed

    def allowed_tokens(self) -> TokenBits | None:
        """Tell which tokens alone may be chosen now; None for all. Asks the grammar, so call it once per step.

        Where a grammar allows the end and something else, an answer that is to go on gets something else.
        """
        if self.grammar is None:
            return self._allowed
        allowed = self.grammar.allowed_tokens()
        if self._allowed is not None:
            allowed = intersection(allowed, self._allowed)
        avoided: Collection[int] = ()
        if self._is_short:
            avoided = (*self.eos_token_ids, *(self.params.stop_token_ids or ()))
        elif self.params.ignore_eos:
            avoided = self.eos_token_ids
        if avoided:
            going_on = difference(allowed, avoided)
            allowed = going_on if going_on.any() else allowed
        return allowed

    @property
    def _is_short(self) -> bool:
        return len(self.output_token_ids) < self.params.min_tokens

    def _is_about_to_end(self, word: tuple[int, ...]) -> bool:
        num_before = len(word) - 1
        return num_before == 0 or tuple(self.output_token_ids[-num_before:]) == word[:-1]
