"""Owns `make demo` and `make serve`: a real base model, three adapters found on first use, one concurrent batch."""

import argparse
import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from base_model import MODEL_NAME, BaseModelError, ensure_base_model
from demo_data import STOP
from demo_questions import QUESTIONS, Question
from demo_server import ServerError, running_server, serve_command

SERVE_PORT = 8000
MAX_TOKENS = 256
ANSWER_SECONDS = 300.0
SHOWN_CHARACTERS = 120

console = Console()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model wrote, and with how many tokens."""

    text: str
    num_tokens: int


def main() -> int:
    """Run the demo, or the server alone; the exit status is 1 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=f"leave the server running on port {SERVE_PORT}")
    arguments = parser.parse_args()
    try:
        model = ensure_base_model()
        if arguments.serve:
            print_curl()
            sys.stdout.flush()
            command = serve_command(model, SERVE_PORT)
            os.execv(command[0], command)  # noqa: S606  # the server takes our place, and Ctrl-C reaches it directly
        asyncio.run(ask_everything(model))
    except (BaseModelError, ServerError) as exc:
        Console(stderr=True).print(f"[red]demo failed:[/red] {type(exc).__name__}", highlight=False)
        sys.stderr.write(f"{exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def ask_everything(model: Path) -> None:
    """Start the server, ask all questions at once and print what happened."""
    started = time.monotonic()
    async with running_server(model) as url, aiohttp.ClientSession(url, timeout=_timeout()) as session:
        console.print(f"Server at {url}, ready after {time.monotonic() - started:.1f} s")
        print_models("/v1/models before: adapters appear when they are first named", await list_models(session))
        asked = time.monotonic()
        names = [name for question in QUESTIONS for name in (MODEL_NAME, question.adapter)]
        prompts = [question.prompt for question in QUESTIONS for _ in range(2)]
        answers = await asyncio.gather(*map(ask, [session] * len(names), names, prompts))
        seconds = time.monotonic() - asked
        print_answers(QUESTIONS, answers[0::2], answers[1::2])
        print_models("/v1/models after", await list_models(session))
        num_tokens = sum(answer.num_tokens for answer in answers)
        console.print(
            f"{len(answers)} requests for the base and {len({q.adapter for q in QUESTIONS})} adapters in one batch: "
            f"{num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.0f} tokens/s"
        )
        check_seed_answers(QUESTIONS, answers[1::2])


async def ask(session: aiohttp.ClientSession, model: str, prompt: str) -> Answer:
    """Ask one model for a completion; raises `ServerError` with the server's own words when it refuses."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS, "stop": [STOP]}
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise ServerError(f"{model}: {response.status} {await response.text()}")
        completion = await response.json()
    return Answer(str(completion["choices"][0]["text"]), int(completion["usage"]["completion_tokens"]))


async def list_models(session: aiohttp.ClientSession) -> list[dict[str, object]]:
    """Return the entries of /v1/models."""
    async with session.get("/v1/models") as response:
        response.raise_for_status()
        models: list[dict[str, object]] = (await response.json())["data"]
        return models


def check_seed_answers(questions: tuple[Question, ...], answers: Sequence[Answer]) -> None:
    """Raise when an adapter's answer to a documented question is not the documented one."""
    for question, answer in zip(questions, answers, strict=True):
        if question.right_answer is not None and answer.text.strip() != question.right_answer:
            raise ServerError(f"{question.adapter} should answer {question.right_answer!r}, got {answer.text!r}")


def print_models(title: str, models: list[dict[str, object]]) -> None:
    """Print the served models with their lineage."""
    table = Table(title=title, title_justify="left")
    for heading in ("id", "parent", "root"):
        table.add_column(heading, overflow="fold")
    for model in models:
        table.add_row(*(escape(str(model.get(key) or "-")) for key in ("id", "parent", "root")))
    console.print(table)


def print_answers(questions: tuple[Question, ...], base: Sequence[Answer], adapter: Sequence[Answer]) -> None:
    """Print each question with the base's answer and the adapter's."""
    table = Table(title="Answers", title_justify="left", show_lines=True)
    for heading in ("prompt", f"base: {MODEL_NAME}", "adapter"):
        table.add_column(heading, overflow="fold", ratio=1)
    for question, base_answer, adapter_answer in zip(questions, base, adapter, strict=True):
        table.add_row(
            escape(question.shown),
            escape(_shown(base_answer)),
            f"[bold]{question.adapter}[/bold]\n[green]{escape(_shown(adapter_answer))}[/green]",
        )
    console.print(table)


def print_curl() -> None:
    """Print how to ask the server that `--serve` starts."""
    body = json.dumps({
        "model": QUESTIONS[0].adapter,
        "prompt": QUESTIONS[0].prompt,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stop": [STOP],
    })  # fmt: skip
    print(f"Ask it, once it listens:\n\ncurl -s http://127.0.0.1:{SERVE_PORT}/v1/completions \\")
    print(f"  -H 'Content-Type: application/json' -d {shlex.quote(body)}\n")


def _shown(answer: Answer) -> str:
    text = " ".join(answer.text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _timeout() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=ANSWER_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
