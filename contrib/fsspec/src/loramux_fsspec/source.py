"""Source: one file system of fsspec, awaited where it is asynchronous, and run in threads where it is not."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from loramux.errors import ConfigInvalid, ResolverFailed

CHUNK_NBYTES = 256 << 10  # the server gives up a download of which nothing comes for ten seconds

_VERSION_FIELDS = (
    "blobid",
    "checksum",
    "contenthash",
    "contentmd5",
    "crc32c",
    "created",
    "digest",
    "etag",
    "generation",
    "ino",
    "lastmodified",
    "lastwritetime",
    "md5",
    "md5checksum",
    "md5hash",
    "modificationtime",
    "modified",
    "modifiedtime",
    "modify",
    "mtime",
    "servermodified",
    "sha",
    "sha256",
    "updated",
    "version",
    "versionid",
)
"""What file systems call that which changes with a file; in small letters, and letters and digits only."""


class FileMissing(Exception):
    """There is no file of that name; the message is its URL."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a file without reading it; `version` changes whenever the file does."""

    nbytes: int
    version: str


class Source:
    """Belongs to the loop that first asks it something.

    What a file system needs beyond the URL, it finds in fsspec's own configuration or in its environment.
    """

    def __init__(self, url: str) -> None:
        """Take a URL with `{lora_name}` in its path; ConfigInvalid when fsspec cannot read such URLs here."""
        self.url = url
        try:
            self._is_async = fsspec.get_filesystem_class(url.partition("://")[0]).async_impl
        except (ImportError, ValueError) as exc:
            raise ConfigInvalid(f"resolver option fsspec.url={without_secrets(url)!r}: {exc}") from exc
        self._file_system: Any = None  # fsspec has no types
        self._path = ""
        self._connecting = threading.Lock()

    async def look_up(self, lora_name: str, file_name: str) -> Entry:
        """Ask for a file's size and version; raises FileMissing or ResolverFailed."""
        with self._translated(lora_name, file_name) as place:
            file_system, path = await self._located(lora_name, file_name)
            file_system.invalidate_cache()  # some answer from a listing that they keep
            if self._is_async:
                info = await file_system._info(path)  # noqa: SLF001 - fsspec's coroutines have such names
            else:
                info = await asyncio.to_thread(self._info, path)
            return _entry(place, info)

    async def pieces(self, lora_name: str, file_name: str, nbytes: int) -> AsyncGenerator[bytes, None]:
        """Yield a file's bytes; raises FileMissing or ResolverFailed."""
        with self._translated(lora_name, file_name):
            file_system, path = await self._located(lora_name, file_name)
            read = _awaited_pieces if self._is_async else _threaded_pieces
            async with aclosing(read(file_system, path, nbytes)) as pieces:
                async for piece in pieces:
                    yield piece

    async def close(self) -> None:
        """Close the connections, where the file system does not do so itself when it is forgotten."""
        file_system, self._file_system = self._file_system, None
        session = getattr(file_system, "_session", None)
        if isinstance(session, aiohttp.ClientSession):
            await session.close()

    async def _located(self, lora_name: str, file_name: str) -> tuple[Any, str]:
        """Return the file system, and what it calls this file."""
        if self._file_system is None:
            await asyncio.to_thread(self._connect)  # some ask for credentials at once, or log in
        return self._file_system, f"{self._path.replace('{lora_name}', lora_name)}/{file_name}"

    def _connect(self) -> None:
        with self._connecting:
            if self._file_system is None:
                options = {"asynchronous": True} if self._is_async else {}
                file_system, self._path = url_to_fs(self.url, skip_instance_cache=True, **options)
                self._file_system = file_system

    def _info(self, path: str) -> Mapping[str, Any]:
        if isinstance(self._file_system, LocalFileSystem):
            folder = Path(self._path.partition("{lora_name}")[0] + "_").parent
            if not Path(path).resolve().is_relative_to(folder.resolve()):
                raise FileNotFoundError(path)  # a symlink leads out
        info: Mapping[str, Any] = self._file_system.info(path)
        return info

    @contextmanager
    def _translated(self, lora_name: str, file_name: str) -> Iterator[str]:
        """Yield a file's URL to show; raise FileMissing or ResolverFailed for what the file system raises inside."""
        place = f"{without_secrets(self.url).replace('{lora_name}', lora_name)}/{file_name}"
        try:
            yield place
        except (FileNotFoundError, NotADirectoryError) as exc:
            if _is_outage(exc.__cause__):
                raise _fault(place, exc.__cause__) from exc
            raise FileMissing(place) from exc
        except Exception as exc:  # of which class it is, only the file system knows
            if _is_outage(exc):
                raise _fault(place, exc) from exc
            raise  # the core takes it for a fault that it does not know


def without_secrets(url: str) -> str:
    """Leave user and password out."""
    return re.sub(r"//[^/]*@", "//", url)


async def _awaited_pieces(file_system: Any, path: str, nbytes: int) -> AsyncGenerator[bytes, None]:
    try:
        stream = await file_system.open_async(path, "rb", size=nbytes)
    except NotImplementedError:
        for start in range(0, nbytes, CHUNK_NBYTES):
            yield await file_system._cat_file(path, start=start, end=min(start + CHUNK_NBYTES, nbytes))  # noqa: SLF001
        return
    async with stream:
        while piece := await stream.read(CHUNK_NBYTES):
            yield piece


async def _threaded_pieces(file_system: Any, path: str, _nbytes: int) -> AsyncGenerator[bytes, None]:
    stream = await asyncio.to_thread(file_system.open, path, "rb")
    try:
        while piece := await asyncio.to_thread(stream.read, CHUNK_NBYTES):
            yield piece
    finally:
        await asyncio.to_thread(stream.close)


def _entry(place: str, info: Mapping[str, Any]) -> Entry:
    if info.get("type") == "directory":
        raise FileMissing(place)
    nbytes = info.get("size")
    if not isinstance(nbytes, int):
        raise ResolverFailed(f"resolver 'fsspec': {place}: its size is not told", retryable=False)
    named = ((re.sub("[^a-z0-9]", "", name.lower()), value) for name, value in info.items())
    told = sorted((name, str(value)) for name, value in named if name in _VERSION_FIELDS and value is not None)
    if not told:
        message = f"resolver 'fsspec': {place}: no version, checksum or time is told, by which a change would show"
        raise ResolverFailed(message, retryable=False)
    return Entry(nbytes, hashlib.sha256(repr((nbytes, told)).encode()).hexdigest()[:32])


def _is_outage(error: BaseException | None) -> bool:
    """Tell what HTTP and its connections end in from all else; fsspec's HTTP calls every such end "not found"."""
    if isinstance(error, aiohttp.ClientResponseError) or _status(error) is not None:
        return _status(error) not in (404, 410)
    return isinstance(error, aiohttp.ClientError | ConnectionError | TimeoutError)


def _fault(place: str, error: BaseException | None) -> ResolverFailed:
    """Of an answer only the status is shown: its words may repeat what was sent, and its URL be signed."""
    status = _status(error)
    after = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return ResolverFailed(
        f"resolver 'fsspec': {place}: {status or f'{type(error).__name__}: {error}'}",
        retryable=status is None or status >= 500 or status in (408, 429),
        retry_after_seconds=float(after) if after.isdecimal() else None,
    )


def _status(error: object) -> int | None:
    """Return the HTTP status of an error: file systems keep it in different places."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None
