"""docs/benchmarks.md shows commands that are taken as they stand, and has every flag."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from loramux.bench.arguments import add_offline_arguments, add_server_arguments, read_offline, read_server
from loramux.bench.replay import ReplayLine

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "benchmarks.md").read_text()
COMMANDS = re.findall(r"^loramux bench (.*)$", DOCS, flags=re.MULTILINE)
LOG_LINES = re.findall(r'^\{"arrival_seconds.*$', DOCS, flags=re.MULTILINE)


def parsers() -> dict[str, argparse.ArgumentParser]:
    made = {"offline": argparse.ArgumentParser(), "serve": argparse.ArgumentParser()}
    add_offline_arguments(made["offline"])
    add_server_arguments(made["serve"])
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kind, *words = shlex.split(command)
    words = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]

    arguments = parsers()[kind].parse_args(words)

    if kind == "offline":
        read_offline(arguments)
    else:
        read_server(arguments, {})


@pytest.mark.parametrize("line", LOG_LINES)
def test_a_log_line_of_the_page_is_one(line: str) -> None:
    ReplayLine.model_validate_json(line)


def test_the_page_has_every_flag() -> None:
    flags = {flag for parser in parsers().values() for action in parser._actions for flag in action.option_strings}

    assert {flag for flag in flags if f"`{flag}" not in DOCS} == {"-h", "--help"}


def test_the_page_shows_commands_and_log_lines() -> None:
    assert (len(COMMANDS), len(LOG_LINES)) == (5, 2)
