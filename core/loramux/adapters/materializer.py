"""Materializer: turns what a remote resolver located into whole, checked files in the store.

Only what has the size and the digest that the source told is published, and nobody sees a file before both are there.
A stored adapter is used again without a download while its source still names the same revision, without any question
while it is fresh, and during an outage of its source even when it is not.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loramux.adapters.disk_store import DiskStore, Staging, StoredRef
from loramux.adapters.peft_config import MAX_CONFIG_NBYTES
from loramux.adapters.resolution import Found
from loramux.adapters.resolver_calls import ResolverCalls
from loramux.adapters.retrying import NotAskedAgain, with_retries
from loramux.errors import AdapterInvalid, ResolverFailed, SourceChanged, StoreFull
from loramux.lora.remote import ADAPTER_FILE_NAMES, CONFIG_NAME, MAX_DEFAULTS_NBYTES, RemoteAdapter, RemoteFile
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

MAX_RELOCATIONS = 2
WATCH_SECONDS = 0.25
STALL_SECONDS = 10.0
"""A download of which nothing arrives for so long has failed."""

MAX_ADAPTER_NBYTES = 2 * 1024**3
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, and where."""

    resolver: ResolverCalls
    base_model_name: str
    lora_name: str
    refuse_revision: Callable[[str], None] | None


_Stored = tuple[StoredRef, Found]  # what is known of a stored adapter, and its files, held


class Materializer:
    """All methods belong to the server's loop; file work runs in its threads. `now` is in Unix seconds.

    `on_fetched` hears how many seconds an adapter took from its source to the store.
    `fetches_defaults` says whether what adapters bring besides their weights is fetched, too.
    """

    def __init__(
        self,
        store: DiskStore,
        *,
        max_adapter_nbytes: int = MAX_ADAPTER_NBYTES,
        fetches_defaults: bool = False,
        now: Callable[[], float] = time.time,
        on_fetched: Callable[[float], None] | None = None,
    ) -> None:
        self._store = store
        self._fetches_defaults = fetches_defaults
        self._max_adapter_nbytes = max_adapter_nbytes
        self._now = now
        self._on_fetched = on_fetched

    async def find(
        self,
        resolver: ResolverCalls,
        base_model_name: str,
        lora_name: str,
        *,
        is_refresh: bool = False,
        refuse_revision: Callable[[str], None] | None = None,
    ) -> Found | None:
        """Return the adapter in the store, held, fetched if need be; None when the source does not know it.

        `refuse_revision` is called once the source has named its version, before a byte is fetched. Raises what it
        raises, ResolverFailed, ResolverDenied, AdapterInvalid for what is too large, StoreFull.
        """
        search = _Search(resolver, base_model_name, lora_name, refuse_revision)
        stored = await self._stored(search)
        if stored is None:
            return await self._fetch(search, None)
        ref, found = stored
        if self._is_fresh(ref, resolver) and not is_refresh:
            return found
        try:
            answer = await self._fetch(search, (ref, found))
        except ResolverFailed as exc:
            if is_refresh or not exc.retryable:
                found.release()
                raise
            logger.warning("stored adapter served, its source fails adapter=%s resolver=%s", lora_name, resolver.name)
            return found
        except BaseException:
            found.release()
            raise
        if answer is not found:
            found.release()
        return answer

    async def reject(self, base_model_name: str, found: Found) -> None:
        """Take an adapter that turned out invalid out of the store; what the name meant before stays."""
        found.release()
        if found.lora_request.digest is not None:
            await asyncio.to_thread(
                self._forget, base_model_name, found.lora_request.lora_name, found.lora_request.digest
            )

    def _forget(self, base_model_name: str, lora_name: str, digest: str) -> None:
        ref = self._store.find_ref(base_model_name, lora_name)
        if ref is not None and ref.digest == digest:
            self._store.remove_ref(base_model_name, lora_name)
        self._store.discard(digest)

    async def _stored(self, search: _Search) -> _Stored | None:
        resolver = search.resolver
        ref = await asyncio.to_thread(self._store.find_ref, search.base_model_name, search.lora_name)
        if ref is None or (ref.resolver, ref.fingerprint) != (resolver.name, self._fingerprint(resolver)):
            return None
        found = await self._hold(ref, search.lora_name)
        return None if found is None else (ref, replace(found, is_new=False))

    def _is_fresh(self, ref: StoredRef, resolver: ResolverCalls) -> bool:
        limit = resolver.policy.revalidate_seconds
        return limit is None or 0 <= self._now() - ref.fetched_at < limit

    async def _fetch(self, search: _Search, stored: _Stored | None) -> Found | None:
        """Locate, and download unless the stored revision is still the one; start over when the source changes."""
        for _ in range(MAX_RELOCATIONS):
            try:
                return await self._fetch_once(search, stored)
            except SourceChanged:
                logger.info(
                    "source changed while it was read adapter=%s resolver=%s", search.lora_name, search.resolver.name
                )
        return await self._fetch_once(search, stored)

    async def _fetch_once(self, search: _Search, stored: _Stored | None) -> Found | None:
        base_model_name, lora_name = search.base_model_name, search.lora_name
        remote = await search.resolver.locate(base_model_name, lora_name)
        if remote is None:
            if stored is not None:
                await asyncio.to_thread(self._store.remove_ref, base_model_name, lora_name)
            return None
        self._check(search, remote)
        if stored is not None and stored[0].revision == remote.revision:
            ref, found = stored
            vouched = replace(ref, fetched_at=self._now())
            await asyncio.to_thread(self._store.set_ref, base_model_name, lora_name, vouched)
            return found
        new: Found | None = None
        started = time.perf_counter()
        try:
            async with self._staging(remote.nbytes) as staging:
                new = await self._publish(search, remote, staging)
        except BaseException:  # cancelled on the way out of staging, too
            if new is not None:
                new.release()
            raise
        if self._on_fetched is not None:
            self._on_fetched(time.perf_counter() - started)
        return new

    async def _publish(self, search: _Search, remote: RemoteAdapter, staging: Staging) -> Found:
        """Fetch and check both files, and bring them into the store, held."""
        for file in remote.files:
            await self._download(search.resolver, file, staging.folder / file.name)
        defaults = await self._fetch_defaults(search, remote, staging.folder) if self._fetches_defaults else {}
        published = await asyncio.to_thread(staging.publish)
        ref = StoredRef(
            digest=published.digest,
            resolver=search.resolver.name,
            fingerprint=self._fingerprint(search.resolver),
            source_root=remote.root,
            revision=remote.revision,
            fetched_at=self._now(),
            defaults=defaults,
        )
        found = await self._hold(ref, search.lora_name)
        assert found is not None, "staging holds what it has published"
        # Until it has proved to be valid, the name goes on to mean what it meant.
        return replace(found, confirm=partial(self._store.set_ref, search.base_model_name, search.lora_name, ref))

    async def _fetch_defaults(self, search: _Search, remote: RemoteAdapter, folder: Path) -> dict[str, str]:
        """Fetch what else the adapter brings; it becomes part of the ref, and nothing of it of the adapter's folder."""
        texts = {}
        for file in await search.resolver.locate_defaults(search.lora_name, remote):
            if file.nbytes > MAX_DEFAULTS_NBYTES:
                reason = f"its {file.name} has {file.nbytes} bytes; the limit is {MAX_DEFAULTS_NBYTES}."
                raise AdapterInvalid(search.lora_name, reason)
            await self._download(search.resolver, file, folder / file.name)
            try:
                texts[file.name] = (await asyncio.to_thread((folder / file.name).read_bytes)).decode()
            except UnicodeDecodeError as exc:
                raise AdapterInvalid(search.lora_name, f"its {file.name} is not UTF-8 text") from exc
        return texts

    def _fingerprint(self, resolver: ResolverCalls) -> str:
        """Tell refs that were made with other settings: such a name is fetched again."""
        return f"{resolver.fingerprint}+defaults" if self._fetches_defaults else resolver.fingerprint

    async def _hold(self, ref: StoredRef, lora_name: str) -> Found | None:
        """Hold stored files, in a thread; if the caller is cancelled meanwhile, they are let go again."""
        holding = asyncio.ensure_future(asyncio.to_thread(self._held, ref, lora_name))
        try:
            return await asyncio.shield(holding)
        except asyncio.CancelledError:
            holding.add_done_callback(_let_go)
            raise

    def _held(self, ref: StoredRef, lora_name: str) -> Found | None:
        lease = self._store.hold(ref.digest)
        if lease is None:
            return None
        request = LoRARequest(
            lora_name,
            1,
            str(lease.adapter.folder),
            revision=ref.revision,
            allowed_root=str(self._store.root),
            digest=ref.digest,
        )
        return Found(
            request, ref.resolver, root=ref.source_root, revision=ref.revision, hold=lease, defaults=ref.defaults
        )

    def _check(self, search: _Search, remote: RemoteAdapter) -> None:
        """Judge what the source says of the files before a byte is fetched."""
        resolver_name, lora_name = search.resolver.name, search.lora_name
        names = tuple(file.name for file in remote.files)
        if names != ADAPTER_FILE_NAMES:
            raise NotAskedAgain(
                f"resolver {resolver_name!r} located {', '.join(names)} instead of the two adapter files"
            )
        for file in remote.files:
            if isinstance(file.nbytes, bool) or not isinstance(file.nbytes, int) or file.nbytes < 0:
                raise NotAskedAgain(f"resolver {resolver_name!r} gave {file.nbytes!r} as the size of {file.name}")
        if not remote.revision or not isinstance(remote.revision, str):
            raise NotAskedAgain(f"resolver {resolver_name!r} gave no revision for {lora_name!r}")
        if search.refuse_revision is not None:
            search.refuse_revision(remote.revision)
        if remote.config.nbytes > MAX_CONFIG_NBYTES:
            raise AdapterInvalid(
                lora_name, f"its {CONFIG_NAME} has {remote.config.nbytes} bytes; the limit is {MAX_CONFIG_NBYTES}."
            )
        if remote.nbytes > self._max_adapter_nbytes:
            raise AdapterInvalid(
                lora_name, f"its files have {remote.nbytes} bytes; the limit is {self._max_adapter_nbytes}."
            )

    @asynccontextmanager
    async def _staging(self, nbytes: int) -> AsyncIterator[Staging]:
        """Enter and leave the store's own context in a thread; whoever is cancelled on the way in leaves, too."""
        context = self._store.stage(nbytes)
        entering = asyncio.ensure_future(asyncio.to_thread(context.__enter__))
        try:
            yield await asyncio.shield(entering)
        finally:
            await asyncio.shield(_leave(context, entering))

    async def _download(self, resolver: ResolverCalls, file: RemoteFile, destination: Path) -> None:
        """Fetch one file and check it; what may heal is tried again, from the first byte."""

        async def attempt() -> None:
            await asyncio.to_thread(destination.unlink, missing_ok=True)
            await _watched(resolver, file, destination)
            await asyncio.to_thread(_verify, resolver.name, file, destination)

        try:
            await with_retries(attempt)
        except ResolverFailed as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno in _DISK_IS_FULL:
                raise StoreFull("the adapter store's disk is full") from exc
            raise


async def _leave(context: AbstractContextManager[Staging], entering: asyncio.Future[Staging]) -> None:
    await asyncio.wait({entering})
    if not entering.cancelled() and entering.exception() is None:
        await asyncio.to_thread(context.__exit__, None, None, None)


def _let_go(holding: asyncio.Future[Found | None]) -> None:
    if not holding.cancelled() and holding.exception() is None and (found := holding.result()) is not None:
        found.release()


async def _watched(resolver: ResolverCalls, file: RemoteFile, destination: Path) -> None:
    """Download, and stop as soon as more comes than was told, or nothing comes any more."""
    download = asyncio.ensure_future(resolver.download(file, destination))
    clock = asyncio.get_running_loop().time
    nbytes, grown_at = 0, clock()
    try:
        while not (await asyncio.wait({download}, timeout=WATCH_SECONDS))[0]:
            present = await asyncio.to_thread(_nbytes_of, destination)
            if present > file.nbytes:
                raise ResolverFailed(
                    f"resolver {resolver.name!r}: {file.name} is larger than the {file.nbytes} bytes that were told"
                )
            if present > nbytes:
                nbytes, grown_at = present, clock()
            elif clock() - grown_at > STALL_SECONDS:
                raise ResolverFailed(
                    f"resolver {resolver.name!r}: nothing of {file.name} has come for {STALL_SECONDS:g} s"
                )
        download.result()
    finally:
        if not download.done():
            download.cancel()
            await asyncio.wait({download})


def _verify(resolver_name: str, file: RemoteFile, path: Path) -> None:
    nbytes = _nbytes_of(path)
    if nbytes != file.nbytes:
        raise ResolverFailed(f"resolver {resolver_name!r}: {file.name} has {nbytes} bytes instead of {file.nbytes}")
    if file.sha256 is None:
        return
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256.lower():
        raise ResolverFailed(f"resolver {resolver_name!r}: {file.name} has sha256 {digest} instead of {file.sha256}")


def _nbytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
