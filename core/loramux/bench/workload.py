"""Workload: requests made up from distributions, the same ones for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loramux.bench.lengths import Lengths
from loramux.bench.popularity import Popularity


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: `adapter` None is the base model; a prompt is a text or token ids. Greedy, past any end token.

    `due_seconds` after the start of the run it is sent, where the load does not wait for answers.
    """

    number: int
    adapter: str | None
    prompt: str | tuple[int, ...]
    max_tokens: int
    due_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What requests look like. `shared_prefix_tokens` come in front of every prompt, and are the same in all."""

    num_requests: int
    prompt_lengths: Lengths
    output_lengths: Lengths
    popularity: Popularity
    shared_prefix_tokens: int = 0
    seed: int = 0

    def requests(self, adapters: Sequence[str | None], *, vocab_size: int, run: str) -> list[BenchRequest]:
        """Make the requests of one run; `run` makes its prompts differ from those of others, but not its lengths.

        Token ids are drawn from all of the vocabulary. Prompts that another run has already had would be answered from
        the prefix cache.
        """
        lengths = random.Random(f"{self.seed}/lengths")
        tokens = random.Random(f"{self.seed}/tokens/{run}")
        prefix = _token_ids(self.shared_prefix_tokens, vocab_size, random.Random(f"{self.seed}/prefix"))
        chosen = self.popularity.choose(self.num_requests, len(adapters), random.Random(f"{self.seed}/adapters"))
        return [
            BenchRequest(
                number,
                adapters[place],
                prefix + _token_ids(self.prompt_lengths.draw(lengths), vocab_size, tokens),
                self.output_lengths.draw(lengths),
            )
            for number, place in enumerate(chosen)
        ]

    def warm_up(self, adapters: Sequence[str | None], num: int, *, vocab_size: int, run: str) -> list[BenchRequest]:
        """Make requests like those of the run, to be sent before it; no prompt is the same."""
        return replace(self, num_requests=num).requests(adapters, vocab_size=vocab_size, run=f"{run}/warm-up")


def with_arrivals(requests: Sequence[BenchRequest], *, request_rate: float, seed: int) -> list[BenchRequest]:
    """Let requests arrive as a Poisson process of so many per second; infinitely many: all at once."""
    if math.isinf(request_rate):
        return [replace(request, due_seconds=0.0) for request in requests]
    source = random.Random(f"{seed}/arrivals")
    due, arriving = 0.0, []
    for request in requests:
        due += source.expovariate(request_rate)
        arriving.append(replace(request, due_seconds=due))
    return arriving


def random_prompt(num_tokens: int, vocab_size: int, seed: str) -> tuple[int, ...]:
    """Make one prompt of so many tokens; the same one for the same seed."""
    return _token_ids(num_tokens, vocab_size, random.Random(seed))


def _token_ids(num_tokens: int, vocab_size: int, source: random.Random) -> tuple[int, ...]:
    return tuple(source.choices(range(vocab_size), k=num_tokens))
