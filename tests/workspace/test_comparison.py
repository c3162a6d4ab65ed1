"""The comparison with other systems runs on a tiny model and counts right; its times are not looked at."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "contrib" / "benchmarks"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare")


@pytest.mark.slow
def test_systems_with_the_same_weights_give_as_many_tokens_and_the_same_ones(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output, plot = tmp_path / "comparison.json", tmp_path / "comparison.png"
    options = ["--tiny", "--rounds", "1", "--output", str(output), "--plot", str(plot)]
    cases = "base,eight-adapters,base-with-room,attention,attention-16-bit"
    chosen = ["--systems", "loramux,transformers,peft", "--cases", cases]
    monkeypatch.setattr(sys, "argv", ["compare.py", *options, *chosen])

    status = compare.main()

    report = json.loads(output.read_text())
    assert (status, report["failures"], report["checked"]["wrong"]) == (0, [], [])
    assert report["checked"]["num_compared"] == 2 * 32
    assert {case: set(row) for case, row in report["speeds"].items()} == {
        "base": {"loramux", "transformers"},
        "eight-adapters": {"loramux", "peft"},
        "base-with-room": {"loramux"},
    }
    for attention in ("attention", "attention_16_bit"):
        assert 0 < report["figures"][f"{attention}_share"]["median"] < 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_in_which_nothing_was_measured_reports_that(compare: ModuleType) -> None:
    report, rounds, checks, ceiling = (
        importlib.import_module(f"comparison.{name}") for name in ("report", "rounds", "checks", "ceiling")
    )
    work = ceiling.ModelWork(layers=((10, 20),), head=(100, 10))

    made = report.make_report({}, rounds.Outcome([], ["a system has ended"], {}), checks.Checked(0, 0, []), work)

    assert (made.ceilings, made.failures, {goal.ratio for goal in made.goals}) == ({}, ["a system has ended"], {None})


def test_an_answer_of_another_length_is_named(compare: ModuleType) -> None:
    one = _measured(compare, "transformers", [[1, 2, 3]])

    checked = importlib.import_module("comparison.checks").check([one], _settings())

    assert checked.wrong == ["base, 32 requests: transformers gave [3] tokens a request"]


def test_answers_that_part_are_told_with_what_both_chose(compare: ModuleType) -> None:
    checks = importlib.import_module("comparison.checks")
    ours, theirs = (_measured(compare, name, [[1, 2, last, 4]]) for name, last in (("loramux", 8), ("peft", 9)))

    (parting,) = checks._partings(theirs, ours)

    assert parting.prefix == (*theirs.prompts[0], 1, 2)
    assert (parting.systems, parting.tokens) == (("peft", "loramux"), (9, 8))


def test_the_ceiling_is_what_its_formula_says_by_hand(compare: ModuleType, tmp_path: Path) -> None:
    ceiling = importlib.import_module("comparison.ceiling")
    case = replace(compare.CASES[1], num_requests=2, prompt_length=3, num_tokens=5)
    work = ceiling.ModelWork(layers=((10, 20), (30, 10)), head=(100, 10))

    speed = work.batch_ceiling(case, gflops_few=1e-9, gflops_many=2e-9)

    prefill, decode = 2 * 500 * 2 * 3, 2 * 500 * 2 * 4 + 2 * 1000 * 2 * 5
    assert speed == pytest.approx(10 / (prefill / 2 + decode))
    assert work.one_request_ceiling(6e-6) == 1.0


def test_the_work_of_a_model_is_read_from_its_files(compare: ModuleType, tiny_llama: Path) -> None:
    work = importlib.import_module("comparison.ceiling").model_work(tiny_llama)

    assert work.head == (320, 64)
    assert len(work.layers) == 2 * 7
    assert work.weight_bytes == 4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 320 * 64)


def _settings() -> object:
    return importlib.import_module("peers.protocol").Settings("", None, 1, {}, 1, 1)


def _measured(compare: ModuleType, system: str, token_ids: list[list[int]]) -> object:
    rounds, process = (importlib.import_module(f"comparison.{name}") for name in ("rounds", "peer_process"))
    case = replace(next(case for case in compare.CASES if case.name == "base"), num_requests=1, num_tokens=4)
    return rounds.Measured(0, system, case, [[5, 6, 7]], process.Done(1.0, token_ids))
