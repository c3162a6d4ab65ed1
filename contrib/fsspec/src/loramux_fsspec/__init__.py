"""FsspecLoRAResolver: an adapter is two files below the URL that a template gives for its name.

fsspec has no way to ask for one version of a file. So each file is looked at again before and after it is read, and
what is still the same then has been the same all along.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from loramux.errors import ConfigInvalid, ResolverFailed, SourceChanged
from loramux.lora.remote import (
    CONFIG_NAME,
    DEFAULTS_FILE_NAMES,
    WEIGHTS_NAME,
    RemoteAdapter,
    RemoteFile,
    RemoteLoRAResolver,
)
from loramux_fsspec.source import FileMissing, Source, without_secrets

__all__ = ["FsspecLoRAResolver"]

_URL = re.compile(r"[a-z][a-z0-9.+-]*://[^/{}?#]*/(?P<path>[^{}?#]*\{lora_name\}[^{}?#]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}")


class FsspecLoRAResolver(RemoteLoRAResolver):
    """Option `url`: `gs://bucket/adapters/{lora_name}`, or any other URL of fsspec with `{lora_name}` in its path."""

    priority = 40
    option_names = ("url",)

    def __init__(self, source: Source) -> None:
        """Take the source; nothing is connected yet."""
        self.source = source

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> FsspecLoRAResolver | None:
        """Need `url`; without it the plugin is not configured."""
        if not options.get("url"):
            return None
        url = options["url"].rstrip("/")
        found = _URL.fullmatch(url)
        if found is None or "::" in url or not _is_plain(found["path"]):
            raise ConfigInvalid(
                f"resolver option fsspec.url={without_secrets(url)!r} must look like "
                "PROTOCOL://PLACE/PREFIX/{lora_name}, without empty, '.' or '..' segments, '?', '#' and '::'"
            )
        return cls(Source(url))

    def describe(self) -> str:
        """Show the URL, without what may be a password in it."""
        return without_secrets(self.source.url)

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:  # noqa: ARG002
        """Return the adapter if its config is there; weights that are missing then are a fault, not an unknown name."""
        if not _NAME.fullmatch(lora_name) or not _is_plain(lora_name):
            return None
        try:
            config = await self._look_at(lora_name, CONFIG_NAME)
        except FileMissing:
            return None
        try:
            weights = await self._look_at(lora_name, WEIGHTS_NAME)
        except FileMissing as exc:
            message = f"resolver 'fsspec': {exc} does not exist, but {CONFIG_NAME} beside it does"
            raise ResolverFailed(message, retryable=False) from exc
        root = self.describe().replace("{lora_name}", lora_name)
        return RemoteAdapter(f"{_handle(config)[1]}+{_handle(weights)[1]}", root, config, weights)

    async def locate_defaults(self, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
        """Return those that lie in the adapter's own folder."""
        lora_name, _ = _handle(adapter.config)
        found = []
        for name in DEFAULTS_FILE_NAMES:
            try:
                found.append(await self._look_at(lora_name, name))
            except FileMissing:
                continue
        return found

    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Write the file, if it is the one that was located both before and after it is read."""
        lora_name, _ = _handle(file)
        try:
            await self._check(file)
            await _write(destination, "xb", b"")
            async with aclosing(self.source.pieces(lora_name, file.name, file.nbytes)) as pieces:
                async for piece in pieces:
                    await _write(destination, "ab", piece)
            await self._check(file)
        except FileMissing as exc:
            raise SourceChanged(f"resolver 'fsspec': {exc} is gone") from exc

    async def aclose(self) -> None:
        """Close the connections."""
        await self.source.close()

    async def _look_at(self, lora_name: str, file_name: str) -> RemoteFile:
        entry = await self.source.look_up(lora_name, file_name)
        return RemoteFile(file_name, entry.nbytes, handle=(lora_name, entry.version))

    async def _check(self, file: RemoteFile) -> None:
        if await self._look_at(_handle(file)[0], file.name) != file:
            raise SourceChanged(f"resolver 'fsspec': {file.name} has been replaced")


def _handle(file: RemoteFile) -> tuple[str, str]:
    """Return the name that was asked for, and the file's version."""
    assert isinstance(file.handle, tuple)
    return file.handle


def _is_plain(path: str) -> bool:
    return not {"", ".", ".."}.intersection(path.split("/"))


async def _write(destination: Path, mode: str, piece: bytes) -> None:
    """Write in a thread, which a cancelled call waits for: nothing is written afterwards, and no file stays open."""
    writing = asyncio.ensure_future(asyncio.to_thread(_write_at_once, destination, mode, piece))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


def _write_at_once(destination: Path, mode: str, piece: bytes) -> None:
    with destination.open(mode) as file:
        file.write(piece)
