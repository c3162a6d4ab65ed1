"""The snippet of the docs; all else about this client is in tests/, where it is a dependency already."""

from __future__ import annotations

import pytest


def test_the_snippet_runs(snippet: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet["openai"], "docs/clients.md", "exec"), {})

    assert capsys.readouterr().out
