"""FilesystemLoRAResolver: an adapter is the folder below the root that has the model's name.

Contained by construction: the way from the root to the files is walked one name at a time and follows no symlink, so
no name leads out of the root. Nothing is opened here: the server reads the two files, in the same manner, from
`allowed_roots`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from loramux.errors import ConfigInvalid, ResolverFailed
from loramux.lora.adapter_root import why_unsafe
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver

__all__ = ["FilesystemLoRAResolver"]

logger = logging.getLogger(__name__)

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class FilesystemLoRAResolver(LoRAResolver):
    """Option `root`: the folder that holds the adapters, as `ROOT/name/adapter_config.json` or nested deeper."""

    priority = 10
    option_names = ("root",)
    unknown_seconds = 0.0  # a folder that was just copied is seen at once

    def __init__(self, root: str | Path) -> None:
        """Take an existing folder; ConfigInvalid for anything else."""
        self.root = Path(root).expanduser().resolve()
        if not self.root.is_dir():
            raise ConfigInvalid(f"resolver option filesystem.root={str(root)!r} must be an existing folder")
        if (reason := why_unsafe(self.root)) is not None:
            raise ConfigInvalid(f"resolver option filesystem.root={str(root)!r} cannot be used: {reason}")
        self.allowed_roots = (self.root,)

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> FilesystemLoRAResolver | None:
        """Need `root`; without it the plugin is not configured."""
        return cls(options["root"]) if options.get("root") else None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # noqa: ARG002
        """Return the folder of that name; raise ResolverFailed when the root cannot be read."""
        folder = await asyncio.to_thread(self._find, lora_name)
        return None if folder is None else LoRARequest(lora_name, 1, str(folder))

    def _find(self, lora_name: str) -> Path | None:
        segments = lora_name.split("/")
        if {"", ".", ".."}.intersection(segments):
            return None
        try:
            return self._walk(segments)
        except ValueError:  # NUL, or characters that no file name has
            return None
        except OSError as exc:
            if exc.errno in _NOT_THERE and self.root.is_dir():
                return None
            raise ResolverFailed(f"resolver 'filesystem' cannot read {self.root}: {exc.strerror}") from exc

    def _walk(self, segments: list[str]) -> Path | None:
        # Plain strings: pathlib interns every segment, and would keep a table of the names that strangers ask for.
        folder = str(self.root)
        for segment in segments:
            folder = f"{folder}/{segment}"
            if not _is_plain(folder, stat.S_IFDIR):
                return None
        if not _is_plain(f"{folder}/adapter_config.json", stat.S_IFREG):
            return None
        weights = f"{folder}/adapter_model.safetensors"
        if os.path.lexists(weights) and not _is_plain(weights, stat.S_IFREG):
            return None
        return Path(folder)  # weights that are missing are reported when the server reads the adapter


def _is_plain(path: str, kind: int) -> bool:
    found = stat.S_IFMT(os.lstat(path).st_mode)
    if found == stat.S_IFLNK:
        logger.warning("symlinks below the root are not followed path=%s", path)
    return found == kind
