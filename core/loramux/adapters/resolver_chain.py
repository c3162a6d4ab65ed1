"""ResolverChain: asks the active resolvers, one after the other, who knows an adapter.

The first answer wins. "Not mine" leads to the next one; a fault ends the search, so that the outage of a private source
is never answered by a public namesake. A resolver may be told to let others go on (`on_error=continue`): then a name
that nobody else knows is unavailable, never "not found".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from cachetools import TTLCache

from loramux.adapters.adapter_files import folder_revision
from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.resolution import Found, Trace, TraceStep, Verdict
from loramux.adapters.resolver_calls import ResolverCalls
from loramux.errors import AdapterInvalid, AdapterNotFound, ResolverDenied, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver

logger = logging.getLogger(__name__)

MAX_INVALID = 1_000
INVALID_SECONDS = 600.0


class Fetcher(Protocol):
    """Brings what a remote resolver knows into local folders: the materializer."""

    async def find(
        self,
        resolver: ResolverCalls,
        base_model_name: str,
        lora_name: str,
        *,
        is_refresh: bool = False,
        refuse_revision: Callable[[str], None] | None = None,
    ) -> Found | None:
        """Return the adapter in a local folder, held; None when the source does not know it.

        `refuse_revision` is called before anything is fetched; it raises for what need not be.
        """
        ...

    async def reject(self, base_model_name: str, found: Found) -> None:
        """Release what turned out to be no valid adapter, and keep nothing of it."""
        ...


class ResolverChain:
    """Owns the resolvers' threads, and closes the resolvers at the end. All methods belong to one event loop.

    Remote resolvers need somebody who fetches their files into the store. `on_step` hears what each resolver said.
    """

    def __init__(
        self,
        resolvers: Sequence[ActiveResolver],
        fetcher: Fetcher | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[TraceStep], None] | None = None,
    ) -> None:
        self._members = [ResolverCalls(active, clock=clock) for active in resolvers]
        self._fetcher = fetcher
        self._on_step = on_step
        self._invalid: TTLCache[tuple[str, str, str], tuple[str, str]] = TTLCache(
            MAX_INVALID, INVALID_SECONDS, timer=clock
        )

    async def resolve(
        self, base_model_name: str, lora_name: str, trace: Trace | None = None, *, is_refresh: bool = False
    ) -> Found:
        """Return the first answer, which the caller must release; every resolver's verdict is added to the trace.

        A refresh asks remote sources even where a stored answer is fresh. Raises AdapterNotFound when nobody knows the
        name, ResolverFailed for a fault, AdapterInvalid for files that cannot be fetched at all, StoreFull.
        """
        trace = Trace(lora_name) if trace is None else trace
        if not is_adapter_name(lora_name):
            trace.add("-", "not asked", "no adapter can have such a name")
            raise AdapterNotFound(lora_name)
        try:
            return await self._search(base_model_name, trace, is_refresh=is_refresh)
        finally:
            if self._on_step is not None:
                for step in trace.steps:
                    self._on_step(step)

    async def _search(self, base_model_name: str, trace: Trace, *, is_refresh: bool) -> Found:
        lora_name = trace.name
        passed_over: ResolverFailed | None = None
        for member in self._members:
            try:
                found = await self._ask(member, base_model_name, trace, is_refresh=is_refresh)
            except ResolverDenied as exc:
                logger.info("adapter denied adapter=%s resolver=%s reason=%s", lora_name, member.name, exc)
                raise AdapterNotFound(lora_name) from exc
            except ResolverFailed as exc:
                if member.policy.on_error == "stop":
                    raise
                logger.warning("resolver passed over adapter=%s resolver=%s: %s", lora_name, member.name, exc)
                passed_over = passed_over or exc
                continue
            if found is not None:
                logger.info("adapter found adapter=%s resolver=%s root=%s", lora_name, member.name, found.root)
                return found
        if passed_over is not None:
            raise passed_over
        raise AdapterNotFound(lora_name)

    async def reject(self, base_model_name: str, found: Found, error: AdapterInvalid) -> None:
        """Release an answer whose files turned out to be no valid adapter, and keep nothing but the reason.

        That version is refused for a while without being fetched or read again, unless it may heal by itself; another
        version is not.
        """
        found.release()
        if error.may_heal:
            return
        if found.revision:
            version = (found.resolver, found.lora_request.lora_name, found.revision)
            self._invalid[version] = (error.reason, error.code)
        if self._fetcher is not None:
            await self._fetcher.reject(base_model_name, found)

    def forget(self, lora_name: str) -> None:
        """Let a name be looked for anew, although it may have been unknown or invalid a moment ago."""
        for member in self._members:
            member.forget_unknown(lora_name)
        for version in [version for version in self._invalid if version[1] == lora_name]:
            self._invalid.pop(version, None)

    def states(self) -> list[tuple[str, float]]:
        """Return each resolver's name and for how many seconds it is left alone, in the order of asking."""
        return [(member.name, member.breaker.seconds_to_wait()) for member in self._members]

    async def close(self) -> None:
        """Close every resolver on its own loop, then the loops; never raises for a resolver's fault."""
        await asyncio.gather(*(member.close() for member in self._members))

    async def _ask(
        self, member: ResolverCalls, base_model_name: str, trace: Trace, *, is_refresh: bool
    ) -> Found | None:
        if not member.policy.is_asked_for(trace.name):
            trace.add(member.name, "not asked", f"its names are {', '.join(member.policy.names)}")
            return None
        started = trace.clock()
        try:
            found = await self._find(member, base_model_name, trace.name, is_refresh=is_refresh)
        except BaseException as exc:
            trace.add(member.name, _verdict_on(exc), str(exc) or type(exc).__name__, since=started)
            raise
        if found is None:
            trace.add(member.name, "not found", since=started)
            return None
        trace.add(member.name, "found" if found.is_new else "stored", f"{found.root} @ {found.revision}", since=started)
        return replace(found, revalidate_seconds=member.policy.revalidate_seconds)

    async def _find(
        self, member: ResolverCalls, base_model_name: str, lora_name: str, *, is_refresh: bool
    ) -> Found | None:
        if member.is_remote:
            if self._fetcher is None:
                raise ResolverFailed(f"resolver {member.name!r} needs a store for what it fetches", retryable=False)
            return await self._fetcher.find(
                member,
                base_model_name,
                lora_name,
                is_refresh=is_refresh,
                refuse_revision=partial(self._refuse_invalid, member.name, lora_name),
            )
        request = await member.resolve(base_model_name, lora_name)
        if request is None:
            return None
        revision = request.revision
        if revision is None:
            revision = await asyncio.to_thread(folder_revision, Path(request.lora_path))
        self._refuse_invalid(member.name, lora_name, revision)
        return Found(request, member.name, root=request.lora_path, revision=revision)

    def _refuse_invalid(self, resolver_name: str, lora_name: str, revision: str) -> None:
        version = (resolver_name, lora_name, revision)
        if version in self._invalid:
            reason, code = self._invalid[version]
            raise AdapterInvalid(lora_name, reason, code=code)


def _verdict_on(error: BaseException) -> Verdict:
    match error:
        case ResolverDenied():
            return "denied"
        case AdapterInvalid():
            return "invalid"
        case _:
            return "failed"
