"""IndexLoRAResolver: an index file, JSON or TOML, says in which folder each adapter lies."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from loramux.errors import ResolverFailed
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver

__all__ = ["IndexLoRAResolver"]


class IndexLoRAResolver(LoRAResolver):
    """Option `index`: a file with `{"name": "folder", …}`; relative folders are meant from the file's own place."""

    option_names = ("index",)
    unknown_seconds = 0.0  # reading the index costs little: a new entry is seen at once

    def __init__(self, index: Path) -> None:
        """Take the path only: the file is read at each call, so that new adapters need no restart."""
        self.index = index.expanduser().resolve()

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> IndexLoRAResolver | None:
        """Need `index`; None says "installed but not configured"."""
        return cls(Path(options["index"])) if options.get("index") else None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # noqa: ARG002
        """Look the name up. The name is a key and never a path, so a hostile one is only an unknown one."""
        folders = await asyncio.to_thread(self._read_index)  # file work never runs on the event loop
        folder = folders.get(lora_name)
        if folder is None:
            return None  # "not mine": the next resolver is asked
        return LoRARequest(lora_name, 1, str(self.index.parent / folder))  # the server gives the id itself

    def describe(self) -> str:
        """Show the index on the start-up screen and in `loramux plugins`."""
        return str(self.index)

    def _read_index(self) -> dict[str, str]:
        try:
            text = self.index.read_text(encoding="utf-8")
            folders = tomllib.loads(text) if self.index.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as exc:  # "mine, but broken": the search ends, the caller may try again
            raise ResolverFailed(f"resolver 'template' cannot read {self.index}: {exc}") from exc
        if not isinstance(folders, dict) or not all(isinstance(folder, str) for folder in folders.values()):
            raise ResolverFailed(f"resolver 'template': {self.index} must map names to folders", retryable=False)
        return folders
