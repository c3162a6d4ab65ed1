"""From a client's name to a repository, a revision and a folder, and what an operator's globs let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.errors import ConfigInvalid
from loramux_hub.allow_list import AllowList, HubName


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/repo", HubName("org/repo", (), "main")),
        ("org/repo/a/b", HubName("org/repo", ("a", "b"), "main")),
        ("org/repo@v1.0", HubName("org/repo", (), "v1.0")),
        ("org/repo/sub@v1", HubName("org/repo", ("sub",), "v1")),
        ("org/repo@feature/x", HubName("org/repo", (), "feature/x")),
        ("org/repo/a@b@v1", HubName("org/repo", ("a@b",), "v1")),
    ],
)
def test_a_name_is_a_repository_a_folder_and_a_revision(name: str, expected: HubName) -> None:
    assert HubName.parse(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "repo",
        "org/",
        "org//sub",
        "org/repo/",
        "org/repo/../x",
        "org/repo@..",
        "org/repo@a/../b",
        "org/repo@a//b",
        "org/repo@",
        "org@v1/repo",
        "-org/repo",
        "org/re--po",
        "org/repo.git",
        "o:rg/repo",
        "org/r%2e",
        "org/" + "r" * 97,
    ],
)
def test_another_name_is_none_of_the_hub(name: str) -> None:
    assert HubName.parse(name) is None


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs/PR/1", "pr/1", "refs/pr", "x/pr/1"])
def test_the_revision_of_a_pull_request_is_none_that_can_be_asked_for(revision: str) -> None:
    assert HubName.parse(f"org/repo@{revision}") is None
    assert HubName.parse("org/repo@expr/new") is not None  # a branch that only sounds like one


@given(name=st.text(alphabet="ab./@-\\%\0", max_size=12))
def test_no_name_has_a_segment_that_leads_elsewhere(name: str) -> None:
    parsed = HubName.parse(f"org/repo/{name}")
    segments = () if parsed is None else (*parsed.folders, *parsed.revision.split("/"))
    assert not {"", ".", ".."}.intersection(segments)


@pytest.mark.parametrize(
    ("allow", "repo_id", "revision", "is_permitted"),
    [
        ("my-org/*", "my-org/sql", "main", True),
        ("my-org/*", "my-org/sql", "v1", True),
        ("my-org/*", "my-org-2/sql", "main", False),
        ("*/sql", "any/sql", "main", True),
        ("*/sql", "any/sql-2", "main", False),
        ("my-org/sql-?", "my-org/sql-2", "main", True),
        ("my-org/sql-?", "my-org/sql-", "main", False),
        ("my-org/*", "my-org/sql/sub", "main", False),
        ("my-org/*", "MY-ORG/sql", "main", False),
        ("a/b, c/d ,", "c/d", "main", True),
        ("a/b@main", "a/b", "main", True),
        ("a/b@main", "a/b", "0" * 40, False),
        ("a/*@v*", "a/b", "v1.0", True),
        ("a/*@v*", "a/b", "v1/x", False),
        ("a/*@release/*", "a/b", "release/1", True),
        ("a/b@main,a/*@v1", "a/b", "v1", True),
    ],
)
def test_a_glob_is_of_the_repository_and_where_it_says_so_of_the_revision(
    allow: str, repo_id: str, revision: str, is_permitted: bool
) -> None:
    assert AllowList(allow).permits(repo_id, revision) == is_permitted


@pytest.mark.parametrize(
    "allow", ["*", "my-org", "my-org/", "a/b/c", "a/[bc]", "a/b@", "https://hub/a/b", "a b/c", " , "]
)
def test_another_allow_list_is_refused_at_start(allow: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"hub\.allow='.*' must be ORG/REPO or ORG/REPO@REVISION"):
        AllowList(allow)
