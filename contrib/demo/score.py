"""Owns the score of the adapters: exact match on held-out examples, the base model beside them.

All tasks, adapters and the base share one batch of loramux itself. The seed differs from the training's, and so does
every column word, table name and value: demo_words.py splits them.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from base_model import ensure_base_model
from demo_data import STOP, TASKS, Example, examples
from loramux import LLM, LoRARequest, RequestOutput, SamplingParams

GOALS = {"sql-lora": 0.85, "json-lora": 0.90, "sentiment-lora": 0.90}
ADAPTERS = Path(__file__).parent / "adapters"
MAX_TOKENS = 96  # the longest held-out answer has fewer; it bounds what the base model rambles


@dataclass(frozen=True, slots=True)
class Score:
    """The exact match of one task, as shares of its held-out examples."""

    task: str
    num_examples: int
    adapter: float
    base: float
    goal: float

    @property
    def is_reached(self) -> bool:
        """Whether the adapter is as good as it has to be."""
        return self.adapter >= self.goal


def main() -> int:
    """Print the scores; the exit status is 1 when an adapter misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="held-out examples per task")
    parser.add_argument("--seed", type=int, default=2, help="of the held-out examples; training uses 1")
    parser.add_argument("--adapters", type=Path, default=ADAPTERS, help="folder that holds one folder per adapter")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--wrong", action="store_true", help="print the adapters' wrong answers, too")
    arguments = parser.parse_args()
    held_out = {task: examples(task, arguments.seed, "held-out", arguments.count) for task in TASKS}
    adapter_texts, base_texts = answer(held_out, arguments.adapters)
    scores = [
        Score(
            task=task,
            num_examples=len(asked),
            adapter=share_right(asked, adapter_texts[task]),
            base=share_right(asked, [first_line(text) for text in base_texts[task]]),
            goal=GOALS[task],
        )
        for task, asked in held_out.items()
    ]
    if arguments.wrong:
        print_wrong(held_out, adapter_texts)
    if arguments.json:
        print(json.dumps([asdict(score) for score in scores], indent=2))
    else:
        print_scores(scores)
    return 0 if all(score.is_reached for score in scores) else 1


def answer(held_out: dict[str, list[Example]], adapters: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the texts of the adapters and of the base, by task; everything is asked in one call."""
    llm = LLM(model=str(ensure_base_model()), enable_lora=True, max_loras=len(held_out), max_lora_rank=8)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, stop=[STOP])
    prompts: list[str] = []
    requests: list[LoRARequest | None] = []
    for number, (task, asked) in enumerate(held_out.items(), start=1):
        # Adapter and base in turn, so that every batch is a mixed one.
        for example in asked:
            prompts += [example.prompt, example.prompt]
            requests += [LoRARequest(task, number, str(adapters / task)), None]
    outputs = llm.generate(prompts, params, lora_request=requests, use_tqdm=sys.stderr.isatty())
    texts = iter([text_of(output) for output in outputs])
    pairs = {task: [(next(texts), next(texts)) for _ in asked] for task, asked in held_out.items()}
    return (
        {task: [adapter for adapter, _ in pairs[task]] for task in held_out},
        {task: [base for _, base in pairs[task]] for task in held_out},
    )


def text_of(output: RequestOutput) -> str:
    """Return the text of a request that succeeded."""
    if output.error is not None:
        raise RuntimeError(f"request {output.request_id} failed: {output.error}")
    return output.outputs[0].text


def first_line(text: str) -> str:
    """Return what the base is judged by: nobody taught it to stop after the answer."""
    return next((line for line in text.splitlines() if line.strip()), "")


def share_right(asked: list[Example], texts: list[str]) -> float:
    """Return the share of texts that are the answer, but for white space around it."""
    return sum(text.strip() == example.answer for example, text in zip(asked, texts, strict=True)) / len(asked)


def print_wrong(held_out: dict[str, list[Example]], texts: dict[str, list[str]]) -> None:
    """Print each wrong answer under its prompt and the right one."""
    for task, asked in held_out.items():
        for example, text in zip(asked, texts[task], strict=True):
            if text.strip() != example.answer:
                print(f"{task}: {example.prompt}\n  right {example.answer}\n  wrong {text.strip()}\n")


def print_scores(scores: list[Score]) -> None:
    """Print the scores as a table."""
    table = Table(title="Exact match on held-out examples")
    for heading in ("task", "examples", "adapter", "base", "goal"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for score in scores:
        colour = "green" if score.is_reached else "red"
        table.add_row(
            score.task,
            str(score.num_examples),
            f"[{colour}]{score.adapter:.1%}[/{colour}]",
            f"{score.base:.1%}",
            f"≥ {score.goal:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
