"""lm-evaluation-harness: an adapter scored through the server equals the same adapter in transformers and PEFT."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from served import Served

TASKS = Path(__file__).parent / "tasks"
TOLERANCE = 1e-4
WINDOW = 512
KEPT = 2
"""Tokens of the window that `local-completions` leaves out: one for the answer, one for the first context."""


@dataclass(frozen=True)
class Scores:
    """What the harness found: per choice, its log-likelihood and whether it is what the model itself would say."""

    choices: list[tuple[float, bool]]
    bits_per_byte: float
    accuracy: float


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tasks, in whose folder the harness finds their data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(shutil.copytree(TASKS, tmp_path / "tasks"))
    return Path.cwd()


@pytest.fixture
def documented(snippet: dict[str, str]) -> dict[str, str]:
    """The `--model_args` of docs/clients.md."""
    arguments = re.search(r"--model_args (\S+)", snippet["lm-evaluation-harness"])
    assert arguments is not None
    return dict(argument.split("=", 1) for argument in arguments[1].split(","))


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "sql-lora", "org/json-lora"])
def test_scores_equal_those_of_transformers(
    served: Served, folders: dict[str, Path], documented: dict[str, str], tasks: Path, name: str
) -> None:
    base = folders["SmolLM2-135M-Instruct"]
    peft = None if folders[name] == base else str(folders[name])
    _add_choices_that_are_greedy(tasks / "choices.jsonl", base, peft)

    local = {"pretrained": str(base), "device": "cpu", "dtype": "float32", "max_length": WINDOW - KEPT}
    expected = _evaluate("hf", {**local, "peft": peft} if peft else local)
    here = {"model": name, "tokenizer": str(base), "max_length": WINDOW, "max_retries": 1}
    found = _evaluate("local-completions", {**documented, **here})

    assert [score for score, _ in found.choices] == pytest.approx(
        [score for score, _ in expected.choices], abs=TOLERANCE, rel=0
    )
    assert [is_greedy for _, is_greedy in found.choices] == [is_greedy for _, is_greedy in expected.choices]
    assert {is_greedy for _, is_greedy in found.choices} == {True, False}
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=TOLERANCE, rel=0)
    assert found.accuracy == expected.accuracy


def test_the_snippet_runs(snippet: dict[str, str], folders: dict[str, Path], tasks: Path) -> None:
    command = snippet["lm-evaluation-harness"]
    for documented, here in (
        ("my_tasks", str(tasks)),
        ("my_task", "loramux_choices"),
        ("/models/SmolLM2-135M-Instruct", str(folders["SmolLM2-135M-Instruct"])),
        ("max_length=2048", f"max_length={WINDOW}"),
    ):
        command = command.replace(documented, here)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    run = subprocess.run(command, shell=True, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert "|loramux_choices|" in run.stdout


def _evaluate(model: str, arguments: Mapping[str, object]) -> Scores:
    result = lm_eval.simple_evaluate(
        model=model,
        model_args=dict(arguments),
        tasks=["loramux_choices", "loramux_passages"],
        task_manager=TaskManager(include_path=str(Path.cwd()), include_defaults=False),
        bootstrap_iters=0,
    )
    choices = [tuple(response[0]) for sample in result["samples"]["loramux_choices"] for response in sample["resps"]]
    scores = result["results"]
    return Scores(choices, scores["loramux_passages"]["bits_per_byte,none"], scores["loramux_choices"]["acc,none"])


def _add_choices_that_are_greedy(questions: Path, base: Path, peft: str | None) -> None:
    """Offer for each question what the model itself says next, where that is a text of its own."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, peft) if peft else model
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    for line in lines:
        token_ids = tokenizer.encode(line["question"])
        with torch.no_grad():
            token_id = int(model(torch.tensor([token_ids])).logits[0, -1].argmax())
        text = tokenizer.decode([token_id])
        if tokenizer.encode(line["question"] + text) == [*token_ids, token_id]:
            line["choices"][-1] = text
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
