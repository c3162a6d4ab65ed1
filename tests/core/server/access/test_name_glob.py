from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.server.access.name_glob import NameGlob


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
        ("**/v*", "a/b/v2"),
        ("a*b*c", "axxbbyc"),
        ("***", "a/b"),
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


@given(st.text(alphabet="ab/*", max_size=8), st.text(alphabet="ab/", max_size=10))
def test_it_means_what_the_same_regular_expression_means(glob: str, name: str) -> None:
    parts = re.split(r"(\*\*?)", glob)
    pattern = "".join({"*": "[^/]*", "**": ".*"}.get(part, re.escape(part)) for part in parts)

    assert NameGlob(glob).matches(name) == (re.fullmatch(pattern, name) is not None)


class CountedName(str):
    """Counts how often it is looked at."""

    __slots__ = ("num_looks",)

    def startswith(self, *arguments: object) -> bool:
        self.num_looks = getattr(self, "num_looks", 0) + 1
        return super().startswith(*arguments)  # type: ignore[arg-type]


def test_no_name_makes_it_try_things_twice() -> None:
    name = CountedName("team-" + "-" * 200 + "/")

    assert not NameGlob("*-*-*-*-*-*-*-*").matches(name)
    assert name.num_looks <= 8 * len(name)
