"""The grammar of adapter names."""

from __future__ import annotations

import pytest

from loramux.adapters.adapter_name import is_adapter_name


@pytest.mark.parametrize(
    "name", ["a", "sql-lora", "org/repo", "org/repo@v1.2+cpu", "s3:team/a_b", "a" * 255, "a..b", "0"]
)
def test_accepts_names_of_folders_repositories_and_revisions(name: str) -> None:
    assert is_adapter_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "../x", "a/../b", "a/./b", "a//b", "a/", "/etc", "~root", "a\\b", "a" * 256],
        *["-rf", "_x", "%2e", "a b", "a\n", "a\x00", "ä", "\ud800"],
    ],
)
def test_refuses_what_could_lead_elsewhere(name: str) -> None:
    assert not is_adapter_name(name)
