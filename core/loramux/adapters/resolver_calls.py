"""ResolverCalls: asks one resolver on its own loop, within its time, again where that may help, or not at all.

What it returns is not trusted: name, type and folder are checked here, before anything is read. Whatever it raises
becomes ResolverFailed or ResolverDenied.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cachetools import TTLCache

from loramux.adapters.circuit_breaker import CircuitBreaker
from loramux.adapters.client_loop import client_loop
from loramux.adapters.resolver_thread import ResolverThread
from loramux.adapters.retrying import NotAskedAgain, with_retries
from loramux.errors import ResolverDenied, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.remote import DEFAULTS_FILE_NAMES, RemoteAdapter, RemoteFile, RemoteLoRAResolver
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS = 3.0
MAX_UNKNOWN_NAMES = 10_000

T = TypeVar("T")


class ResolverCalls:
    """One resolver as the chain sees it. All methods belong to the server's loop."""

    def __init__(self, active: ActiveResolver, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = active.name
        self.policy = active.policy
        self.fingerprint = active.fingerprint
        self.breaker = CircuitBreaker(clock)
        self._unknown: TTLCache[str, None] = TTLCache(MAX_UNKNOWN_NAMES, active.policy.unknown_seconds, timer=clock)
        self._resolver = active.resolver
        self._thread = ResolverThread(active.name)
        self._calls_synchronously = False

    @property
    def is_remote(self) -> bool:
        """Whether its files must be fetched."""
        return isinstance(self._resolver, RemoteLoRAResolver)

    async def resolve(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Ask a local resolver for the folder of a name; None means "not mine"."""
        return await self._ask(lora_name, partial(_resolve, self._resolver, base_model_name, lora_name))

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
        """Ask a remote resolver for the files of a name; None means "not mine"."""
        return await self._ask(lora_name, partial(_locate, self._resolver, base_model_name, lora_name))

    async def locate_defaults(self, lora_name: str, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
        """Ask a remote resolver what else lies beside an adapter that it has located."""
        return await self._guard(
            lambda: self._run(lora_name, partial(_locate_defaults, self._resolver, lora_name, adapter))
        )

    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Fetch one file once; the caller bounds the time, checks what came, and tries again."""
        await self._run(file.name, partial(_download, self._resolver, file, destination))

    def forget_unknown(self, lora_name: str) -> None:
        """Ask again for a name although it was not known a moment ago."""
        self._unknown.pop(lora_name, None)

    async def close(self) -> None:
        """Close the resolver on its own loop, then the loop; a resolver that blocks is left behind."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self._thread.run(self._resolver.aclose, self._loop())
        except TimeoutError:
            logger.warning("resolver did not close in time resolver=%s", self.name)
        except Exception:  # a plugin call
            logger.exception("resolver did not close resolver=%s", self.name)
        await self._thread.close()

    async def _ask(self, lora_name: str, question: Callable[[], Coroutine[Any, Any, T | None]]) -> T | None:
        """Ask, unless the resolver has said just now that it does not know the name."""
        if lora_name in self._unknown:
            return None
        answer = await self._guard(lambda: self._run(lora_name, question))
        if answer is None and self.policy.unknown_seconds > 0:
            self._unknown[lora_name] = None
        return answer

    async def _guard(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask within the time there is, several times if that helps, and not at all while the breaker is open."""
        wait = self.breaker.seconds_to_wait()
        if wait > 0:
            raise ResolverFailed(
                f"resolver {self.name!r} has failed again and again; it is asked again in {wait:.0f} s",
                retry_after_seconds=wait,
            )
        self.breaker.begin()
        try:
            async with asyncio.timeout(self.policy.timeout_seconds):
                answer = await with_retries(question)
        except ResolverDenied:
            self.breaker.succeed()
            raise
        except TimeoutError as exc:
            self.breaker.fail()
            raise await self._too_late() from exc
        except NotAskedAgain:
            self.breaker.abandon()  # a bug that some name brings out must not keep the other names away
            raise
        except ResolverFailed as exc:
            if exc.retryable:
                self.breaker.fail()
            else:
                self.breaker.succeed()  # it is there, and says no
            raise
        except BaseException:
            self.breaker.abandon()
            raise
        self.breaker.succeed()
        return answer

    async def _run(self, asked_for: str, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._loop()
        translated = partial(_translate, self.name, asked_for, question)
        try:
            return await self._thread.run(translated, loop)
        except ResolverFailed as exc:
            if loop is None or not isinstance(exc.__cause__, NotImplementedError):
                raise
        # fsspec refuses blocking calls on its own loop, and allows them on any other: this resolver makes such calls.
        self._calls_synchronously = True
        return await self._thread.run(translated)

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        return None if self._calls_synchronously else client_loop(self._resolver)

    async def _too_late(self) -> ResolverFailed:
        what = f"resolver {self.name!r} did not answer within {self.policy.timeout_seconds:g} s"
        if await self._thread.is_blocked():
            what += ", and blocks its event loop: what waits belongs behind an await or into asyncio.to_thread"
        return ResolverFailed(what)


async def _translate(resolver_name: str, asked_for: str, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a plugin's coroutine; whatever it raises comes out as one of our errors."""
    failed = f"resolver {resolver_name!r} failed on {asked_for!r}"
    try:
        return await question()
    except NotAskedAgain as exc:
        raise NotAskedAgain(f"resolver {resolver_name!r} {exc}", retryable=exc.retryable) from exc.__cause__
    except (ResolverFailed, ResolverDenied):
        raise
    except (TimeoutError, ConnectionError) as exc:
        raise ResolverFailed(f"{failed}: {type(exc).__name__}: {exc}") from exc
    except (Exception, SystemExit) as exc:  # a plugin call
        raise NotAskedAgain(f"{failed}: {type(exc).__name__}: {exc}") from exc
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise NotAskedAgain(f"{failed}: it cancelled itself") from exc


async def _resolve(resolver: Any, base_model_name: str, lora_name: str) -> LoRARequest | None:
    found = await _awaited(resolver.resolve_lora, base_model_name, lora_name)
    if found is None:
        return None
    if not isinstance(found, LoRARequest):
        raise NotAskedAgain(f"returned {type(found).__name__} for {lora_name!r}; it must return a LoRARequest or None")
    if found.lora_name != lora_name:
        raise NotAskedAgain(f"was asked for {lora_name!r}, but returned {found.lora_name!r}")
    roots = resolver.allowed_roots
    if roots is None:
        return replace(found, lora_path=str(found.lora_path), allowed_root=None, digest=None)  # a Path is accepted
    contained = await asyncio.to_thread(_contain, found, roots)
    if contained is None:
        allowed = ", ".join(str(root) for root in roots) or "none"
        raise NotAskedAgain(f"returned {found.lora_path} for {lora_name!r}, outside its allowed roots: {allowed}")
    return contained


async def _locate(resolver: Any, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
    found = await _awaited(resolver.locate, base_model_name, lora_name)
    if found is not None and not isinstance(found, RemoteAdapter):
        returned = type(found).__name__
        raise NotAskedAgain(f"returned {returned} for {lora_name!r}; it must return a RemoteAdapter or None")
    return found


async def _locate_defaults(resolver: Any, lora_name: str, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
    found = await resolver.locate_defaults(adapter)
    names = [file.name for file in found if isinstance(file, RemoteFile)]
    if len(names) != len(found) or len(set(names)) != len(names) or not set(names) <= set(DEFAULTS_FILE_NAMES):
        raise NotAskedAgain(
            f"located other files beside {lora_name!r} than it was asked for: {', '.join(DEFAULTS_FILE_NAMES)}"
        )
    return tuple(found)


async def _download(resolver: Any, file: RemoteFile, destination: Path) -> None:
    await resolver.download(file, destination)


async def _awaited(method: Callable[..., object], *arguments: str) -> object:
    try:
        answer = method(*arguments)
        if not inspect.isawaitable(answer):
            name = method.__name__
            raise NotAskedAgain(f"has a {name} that is not async: write `async def {name}`", retryable=False)
        return await answer
    except FileNotFoundError:
        return None


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
            return replace(found, lora_path=str(folder), allowed_root=str(root), digest=None)
    return None


def _real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))
