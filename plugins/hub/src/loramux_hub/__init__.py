"""HubLoRAResolver: an adapter is two files of one commit of a repository that the operator allows.

The commit is pinned when the adapter is located: a branch that moves afterwards moves neither file.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from loramux.errors import ResolverDenied, ResolverFailed, SourceChanged
from loramux.lora.remote import (
    CONFIG_NAME,
    DEFAULTS_FILE_NAMES,
    WEIGHTS_NAME,
    RemoteAdapter,
    RemoteFile,
    RemoteLoRAResolver,
)
from loramux_hub.allow_list import AllowList, HubName
from loramux_hub.hub import Hub, NotOnHub, RepoInfo

__all__ = ["HubLoRAResolver"]

CHUNK_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Blob:
    """Where a located file is; `git_sha1` is its Git object's name where the Hub does not know its SHA-256."""

    repo_id: str
    commit: str
    path: str
    git_sha1: str | None


class HubLoRAResolver(RemoteLoRAResolver):
    """Option `allow`: globs of the repositories that may be served; `endpoint`: another Hub than the usual one."""

    priority = 30
    option_names = ("allow", "endpoint")

    def __init__(self, allow_list: AllowList, hub: Hub) -> None:
        """Take both; nothing is connected yet."""
        self.allow_list = allow_list
        self.hub = hub

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> HubLoRAResolver | None:
        """Need `allow`; without it the plugin is not configured, whatever else is."""
        if not options.get("allow"):
            return None
        return cls(AllowList(options["allow"]), Hub(options.get("endpoint") or constants.ENDPOINT))

    def describe(self) -> str:
        """Show what is allowed, and at which Hub."""
        return f"{self.allow_list.text} at {self.hub.endpoint}"

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:  # noqa: ARG002
        """Ask once, for the commit and all it has; a name that is not allowed is answered without asking."""
        name = HubName.parse(lora_name)
        if name is None or not self.allow_list.permits(name.repo_id, name.revision):
            return None
        try:
            info = await self.hub.repo_info(name.repo_id, name.revision)
        except NotOnHub:
            return None
        if not self.allow_list.permits(info.id, name.revision):
            raise ResolverDenied(f"{name.repo_id} has moved to {info.id}, which hub.allow does not name")
        root = f"hf://{'/'.join((info.id, *name.folders))}@{info.sha}"
        config, weights = (_find(info, name.folders, file_name) for file_name in (CONFIG_NAME, WEIGHTS_NAME))
        if config is None:
            return None
        if weights is None:
            message = f"resolver 'hub': {root} has {CONFIG_NAME}, but no {WEIGHTS_NAME}"
            raise ResolverFailed(message, retryable=False)
        return RemoteAdapter(info.sha, root, config, weights)

    async def locate_defaults(self, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
        """Ask for the located commit again, and return what it has beside the adapter."""
        blob = adapter.config.handle
        assert isinstance(blob, _Blob)
        try:
            info = await self.hub.repo_info(blob.repo_id, blob.commit)
        except NotOnHub as exc:
            raise SourceChanged(f"resolver 'hub': {exc} is gone") from exc
        folders = tuple(blob.path.split("/")[:-1])
        return [file for name in DEFAULTS_FILE_NAMES if (file := _find(info, folders, name)) is not None]

    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Write the file as it is in the located commit; SourceChanged when the commit is gone.

        The core verifies the SHA-256 that the Hub knows of large files; of all others it knows Git's SHA-1 only, which
        is verified here.
        """
        blob = file.handle
        assert isinstance(blob, _Blob)
        digest = hashlib.sha1(b"blob %d\0" % file.nbytes, usedforsecurity=False)
        try:
            async with self.hub.file(blob.repo_id, blob.commit, blob.path) as pieces:
                await _write(destination, "xb", b"")
                async for piece in pieces.aiter_bytes(CHUNK_NBYTES):
                    digest.update(piece)
                    await _write(destination, "ab", piece)
        except NotOnHub as exc:
            raise SourceChanged(f"resolver 'hub': {exc} is gone") from exc
        if blob.git_sha1 not in (None, digest.hexdigest()):
            raise ResolverFailed(f"resolver 'hub': hf://{blob.repo_id}@{blob.commit}: other bytes came for {blob.path}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self.hub.close()


def _find(info: RepoInfo, folders: tuple[str, ...], name: str) -> RemoteFile | None:
    path = "/".join((*folders, name))
    file = next((file for file in info.siblings if file.path == path), None)
    if file is None:
        return None
    sha256 = None if file.lfs is None else file.lfs.sha256
    return RemoteFile(name, file.nbytes, sha256, _Blob(info.id, info.sha, path, None if sha256 else file.git_sha1))


async def _write(destination: Path, mode: str, chunk: bytes) -> None:
    """Write in a thread, which a cancelled call waits for: nothing is written afterwards, and no file stays open."""
    writing = asyncio.ensure_future(asyncio.to_thread(_write_at_once, destination, mode, chunk))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


def _write_at_once(destination: Path, mode: str, chunk: bytes) -> None:
    with destination.open(mode) as file:
        file.write(chunk)
