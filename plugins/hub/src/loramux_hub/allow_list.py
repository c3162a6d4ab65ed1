"""HubName: the repository, revision and folder that a client's name means; AllowList: whether they may be asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from loramux.errors import ConfigInvalid
from loramux.lora.remote import split_revision

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}")
_ENTRY = re.compile(r"[A-Za-z0-9._*?-]+/[A-Za-z0-9._*?-]+(?:@[A-Za-z0-9._:/+*?-]+)?")


@dataclass(frozen=True, slots=True)
class HubName:
    """`org/repo`, `org/repo/folder`, each perhaps with `@revision`."""

    repo_id: str
    folders: tuple[str, ...]
    revision: str

    @classmethod
    def parse(cls, lora_name: str) -> HubName | None:
        """Take a client's name apart; None for one that names no repository, or somebody's proposal to one."""
        if not _NAME.fullmatch(lora_name):
            return None
        path, given_revision = split_revision(lora_name)
        revision = given_revision or "main"
        segments = path.split("/")
        if {"", ".", ".."}.intersection((*segments, *revision.split("/"))) or _is_pull_request(revision):
            return None
        repo_id = "/".join(segments[:2])
        try:
            validate_repo_id(repo_id)
        except HFValidationError:
            return None
        return cls(repo_id, tuple(segments[2:]), revision) if "/" in repo_id else None


class AllowList:
    """Globs of repositories, `org/repo`, separated by commas; one with `@revision` allows such revisions only."""

    def __init__(self, text: str) -> None:
        """Raise ConfigInvalid for anything else."""
        self._globs = [glob.strip() for glob in text.split(",") if glob.strip()]
        self.text = ", ".join(self._globs)
        wrong = [glob for glob in self._globs if not _ENTRY.fullmatch(glob)]
        if wrong or not self._globs:
            raise ConfigInvalid(
                f"resolver option hub.allow={text!r} must be ORG/REPO or ORG/REPO@REVISION, in which * and ? stand for "
                f"other characters than /; several are separated by commas"
            )

    def permits(self, repo_id: str, revision: str) -> bool:
        """Whether a name of this repository and revision may be asked for."""
        return any(_matches(f"{repo_id}@{revision}" if "@" in glob else repo_id, glob) for glob in self._globs)


def _matches(name: str, glob: str) -> bool:
    """Compare segment by segment, so that no `*` stands for a `/`."""
    segments, globs = name.split("/"), glob.split("/")
    return len(segments) == len(globs) and all(map(fnmatchcase, segments, globs))


def _is_pull_request(revision: str) -> bool:
    """Anybody may open a pull request in a public repository, and its commits are then under `refs/pr/`."""
    return "pr" in revision.lower().split("/")
