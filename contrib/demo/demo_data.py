"""Owns the demo's tasks by name and the one prompt format that all of them share.

`examples(task, seed, split, count)` is deterministic: the same arguments give the same examples on every machine.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo_json import json_example
from demo_sentiment import sentiment_example
from demo_sql import sql_example
from demo_words import Split

STOP = "[/assistant]"
TASKS: dict[str, Callable[[random.Random, Split], tuple[str, str]]] = {
    "sql-lora": sql_example,
    "json-lora": json_example,
    "sentiment-lora": sentiment_example,
}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt as a client sends it, and the text that answers it, without the stop string."""

    prompt: str
    answer: str

    @property
    def completion(self) -> str:
        """What the model learns to write after the prompt."""
        return f" {self.answer} {STOP}"


def format_prompt(text: str) -> str:
    """Wrap the user's text in the format of the multi-LoRA documentation that the demo answers to."""
    return f"[user] {text} [/user] [assistant]"


def examples(task: str, seed: int, split: Split, count: int) -> list[Example]:
    """Return `count` different examples of a task."""
    rng = random.Random(f"{task}/{seed}/{split}")
    found: dict[str, Example] = {}
    while len(found) < count:
        text, answer = TASKS[task](rng, split)
        found.setdefault(text, Example(format_prompt(text), answer))
    return list(found.values())
