"""ResolverChain: asks the active resolvers, one after the other, who knows an adapter.

The first answer wins. An error ends the search, so that the outage of a private source is never answered by a public
namesake. What a resolver returns is not trusted: name, type and folder are checked before anything is read.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.client_loop import client_loop
from loramux.adapters.resolver_thread import ResolverThread
from loramux.errors import AdapterNotFound, ResolverDenied, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS = 3.0


class ResolverChain:
    """Owns one thread per resolver, and closes the resolvers at the end."""

    def __init__(self, resolvers: Sequence[ActiveResolver]) -> None:
        self._members = [_Member(active) for active in resolvers]

    async def resolve(self, base_model_name: str, lora_name: str) -> LoRARequest:
        """Return the first answer; raises AdapterNotFound when nobody knows the name, ResolverFailed for a fault.

        The id in the answer is whatever the resolver put there: the caller gives its own.
        """
        if not is_adapter_name(lora_name):
            raise AdapterNotFound(lora_name)
        for member in self._members:
            try:
                found = await member.ask(base_model_name, lora_name)
            except ResolverDenied as exc:
                logger.info("adapter denied adapter=%s resolver=%s reason=%s", lora_name, member.name, exc)
                raise AdapterNotFound(lora_name) from exc
            if found is not None:
                logger.info("adapter found adapter=%s resolver=%s path=%s", lora_name, member.name, found.lora_path)
                return found
        raise AdapterNotFound(lora_name)

    async def close(self) -> None:
        """Close every resolver on its own loop, then the loops; never raises for a resolver's fault."""
        await asyncio.gather(*(member.close() for member in self._members))


class _Member:
    """A resolver and the loop it runs on: its own, or the one its fsspec client is bound to."""

    def __init__(self, active: ActiveResolver) -> None:
        self.name = active.name
        self._active = active
        self._thread = ResolverThread(active.name)
        self._calls_synchronously = False

    async def ask(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        question = partial(_ask, self._active, base_model_name, lora_name)
        loop = self._loop()
        try:
            return await self._thread.run(question, loop)
        except ResolverFailed as exc:
            if loop is None or not isinstance(exc.__cause__, NotImplementedError):
                raise
        # fsspec refuses blocking calls on its own loop, and allows them on any other: this resolver makes such calls.
        self._calls_synchronously = True
        return await self._thread.run(question)

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self._thread.run(self._active.resolver.aclose, self._loop())
        except TimeoutError:
            logger.warning("resolver did not close in time resolver=%s", self.name)
        except Exception:  # a plugin call
            logger.exception("resolver did not close resolver=%s", self.name)
        await self._thread.close()

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        return None if self._calls_synchronously else client_loop(self._active.resolver)


async def _ask(active: ActiveResolver, base_model_name: str, lora_name: str) -> LoRARequest | None:
    try:
        answer = active.resolver.resolve_lora(base_model_name, lora_name)
        found = await answer if inspect.isawaitable(answer) else _not_async(active)
    except FileNotFoundError:
        return None
    except (ResolverFailed, ResolverDenied):
        raise
    except (Exception, SystemExit) as exc:  # a plugin call
        raise _fault(active, f"failed on {lora_name!r}: {type(exc).__name__}: {exc}") from exc
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _fault(active, f"failed on {lora_name!r}: it cancelled itself") from exc
    if found is None:
        return None
    _check(active, lora_name, found)
    roots = active.resolver.allowed_roots
    if roots is None:
        return replace(found, lora_path=str(found.lora_path), allowed_root=None)  # a Path is accepted, too
    contained = await asyncio.to_thread(_contain, found, roots)
    if contained is None:
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise _fault(active, f"returned {found.lora_path} for {lora_name!r}, outside its allowed roots: {allowed}")
    return contained


def _check(active: ActiveResolver, lora_name: str, found: LoRARequest) -> None:
    if not isinstance(found, LoRARequest):
        raise _fault(active, f"returned {type(found).__name__} for {lora_name!r}; it must return a LoRARequest or None")
    if found.lora_name != lora_name:
        raise _fault(active, f"was asked for {lora_name!r}, but returned {found.lora_name!r}")


def _contain(found: LoRARequest, roots: Sequence[str | Path]) -> LoRARequest | None:
    """Return the answer with its folder and root free of symlinks, or None when the folder is in none of the roots.

    This look at the folder proves nothing about a later one: whoever opens it goes from the root, without symlinks.
    """
    try:
        folder = _real_path(found.lora_path)
    except ValueError:  # a NUL in the path
        return None
    for root in map(_real_path, roots):
        if folder.is_relative_to(root):
            return replace(found, lora_path=str(folder), allowed_root=str(root))
    return None


def _real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _not_async(active: ActiveResolver) -> None:
    raise _fault(active, "has a resolve_lora that is not async: write `async def resolve_lora`", retryable=False)


def _fault(active: ActiveResolver, what: str, *, retryable: bool = True) -> ResolverFailed:
    return ResolverFailed(f"resolver {active.name!r} {what}", retryable=retryable)
