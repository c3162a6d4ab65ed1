from __future__ import annotations

import pytest

from loramux.server.name_glob import NameGlob


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("sql", "sql"),
        ("team-a/*", "team-a/sql"),
        ("team-a/**", "team-a/sql/v2"),
        ("**", "any/thing@at-all"),
        ("*/sql", "team-a/sql"),
        ("sql-*-v2", "sql-large-v2"),
        ("a.b", "a.b"),
    ],
)
def test_a_name_that_is_meant_matches(glob: str, name: str) -> None:
    assert NameGlob(glob).matches(name)


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("sql", "sql2"),
        ("sql", "my-sql"),
        ("sql", "sql\n"),
        ("team-a/*", "team-a/sql/v2"),
        ("team-a/*", "team-ab/sql"),
        ("team-a/**", "team-a"),
        ("*", "team-a/sql"),
        ("a.b", "axb"),
        ("SQL", "sql"),
        ("[a-z]", "a"),
    ],
)
def test_what_only_looks_like_it_does_not(glob: str, name: str) -> None:
    assert not NameGlob(glob).matches(name)
