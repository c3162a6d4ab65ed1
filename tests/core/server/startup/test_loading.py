from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers.utils import logging as transformers_logging

from loramux.server.startup import loading
from loramux.server.startup.loading import show_loading


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(loading, "Console", lambda **_: console)
    return written


def test_the_bars_of_transformers_are_drawn_on_a_terminal(terminal: io.StringIO) -> None:
    with show_loading("org/llama"):
        items = list(transformers_logging.tqdm(["a", "b"], desc="Loading weights"))

    assert items == ["a", "b"]
    assert "loading org/llama" in terminal.getvalue()
    assert "Loading weights" in terminal.getvalue()


def test_a_bar_that_is_updated_by_hand_works_too(terminal: io.StringIO) -> None:
    with show_loading("org/llama"), transformers_logging.tqdm(total=2, desc="Fetching") as bar:
        bar.update(2)
        bar.set_postfix(file="x")

    assert "Fetching" in terminal.getvalue()


def test_what_has_no_bar_of_its_own_still_shows_that_it_goes_on(terminal: io.StringIO) -> None:
    with show_loading("model.gguf"):
        pass

    assert "Loading" in terminal.getvalue().partition("model.gguf")[2]


def test_a_log_file_gets_one_line_and_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with show_loading("org/llama"):
        list(transformers_logging.tqdm(["a"], desc="Loading weights"))

    assert capsys.readouterr().err.endswith(": loading org/llama\n")


def test_afterwards_transformers_draws_its_own_bars_again() -> None:
    before = transformers_logging.set_tqdm_hook(None)

    with show_loading("org/llama"):
        pass

    assert transformers_logging.set_tqdm_hook(before) is None
