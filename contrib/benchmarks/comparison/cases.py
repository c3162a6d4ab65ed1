"""The loads that are compared, and the prompts of each: the same for every system, others in every round."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["generate", "attention", "limits"]
Precision = Literal["float32", "int8", "float16-kv"]
RANKS = (8, 16, 32, 64)
BATCH_SIZE = 32
NUM_SLOTS = 8
MANY_ADAPTERS = 32
WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One load: `num_requests` prompts of `prompt_length` tokens at once, `num_tokens` new ones for each.

    adapters: given to the requests in turn; empty for the base model. has_adapters: whether the system is built with
    room for adapters. group: cases that are set against each other run next to each other.
    """

    name: str
    title: str
    group: str
    kind: Kind = "generate"
    num_requests: int = BATCH_SIZE
    prompt_length: int = 64
    num_tokens: int = 64
    adapters: Sequence[str] = ()
    precision: Precision = "float32"
    has_adapters: bool = False

    def adapter_names(self) -> list[str | None]:
        """Name one adapter per request."""
        if not self.adapters:
            return [None] * self.num_requests
        return [self.adapters[index % len(self.adapters)] for index in range(self.num_requests)]

    def prompts(self, vocab_size: int, seed: object) -> list[list[int]]:
        """Draw one prompt per request from the middle of the vocabulary, where no special tokens are."""
        source = random.Random(f"{seed} {self.name}")
        first, last = vocab_size // 8, vocab_size * 7 // 8
        return [
            [source.randint(first, last) for _position in range(self.prompt_length)]
            for _request in range(self.num_requests)
        ]


ADAPTER_NAMES = tuple(f"lora-{number}" for number in range(MANY_ADAPTERS))
"""As made_adapters.py names them; their ranks take turns."""
RANK_64 = ADAPTER_NAMES[RANKS.index(64)]

CASES = (
    Case(name="limits", title="the machine's limits", group="limits", kind="limits"),
    Case(name="base", title="base, 32 requests", group="batch"),
    Case(name="one-adapter", title="one adapter r64", group="batch", adapters=(RANK_64,), has_adapters=True),
    Case(
        name="eight-adapters",
        title="8 adapters (r 8 to 64) mixed",
        group="batch",
        adapters=ADAPTER_NAMES[:NUM_SLOTS],
        has_adapters=True,
    ),
    Case(
        name="many-adapters",
        title="32 adapters on 8 slots",
        group="batch",
        adapters=ADAPTER_NAMES,
        has_adapters=True,
    ),
    Case(
        name="many-adapters-shared",
        title="the same, 4 requests for each adapter",
        group="batch",
        num_requests=4 * MANY_ADAPTERS,
        adapters=ADAPTER_NAMES,
        has_adapters=True,
    ),
    Case(name="base-with-room", title="base, room for adapters", group="batch", has_adapters=True),
    Case(name="one-request", title="base, one request", group="one", num_requests=1),
    Case(
        name="one-request-int8",
        title="one request, 8-bit or 4-bit weights",
        group="one",
        num_requests=1,
        precision="int8",
    ),
    Case(name="attention", title="one step at 1,024 tokens", group="attention", kind="attention", prompt_length=1024),
    Case(
        name="attention-16-bit",
        title="the same, keys and values in 16 bits",
        group="attention",
        kind="attention",
        prompt_length=1024,
        precision="float16-kv",
    ),
)
