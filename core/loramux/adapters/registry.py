"""AdapterRegistry: from a model name to the base model, a served adapter, or the resolvers.

Names that nobody knows leave nothing behind. One name is loaded by one flight at a time, however many ask for it; the
registry owns the flight, so that a caller who leaves takes nothing from the others. An id is never given twice.
What a resolver found is looked at again once its weights have left host memory: if it cannot be loaded any more, the
name is forgotten and resolved as if it were new.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import (
    AdapterInvalid,
    AdapterNotFound,
    EngineOverloaded,
    LoramuxError,
    RequestInvalid,
    ResolverFailed,
)
from loramux.lora.hookspecs import AdapterEvent
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

MAX_FLIGHTS = 256

Origin = Literal["static", "api", "resolver"]


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that requests may use; `created` is the load time in Unix seconds, `root` the path as it was given."""

    lora_request: LoRARequest
    parent: str
    root: str
    created: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class _Flight:
    task: asyncio.Task[ServedAdapter | Exception]
    is_resolution: bool

    async def land(self) -> ServedAdapter:
        """Wait without ever cancelling the task, then return or raise its outcome."""
        await asyncio.wait({self.task})
        if self.task.cancelled():
            raise ResolverFailed("the server is shutting down", retry_after_seconds=5)
        outcome = self.task.result()
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)  # every waiter raises the same object: keep its traceback short
        return outcome


class AdapterRegistry:
    """The one owner of names and ids. All methods belong to one event loop."""

    def __init__(
        self,
        base_model_names: Sequence[str],
        chain: ResolverChain,
        load: Callable[[LoRARequest], Awaitable[object]],
        unload: Callable[[int], Awaitable[object]],
        hooks: PluginHooks | None = None,
    ) -> None:
        self._base_model_names = tuple(base_model_names)
        self._chain = chain
        self._load = load
        self._unload = unload
        self._hooks = hooks or PluginHooks()
        self._served: dict[str, ServedAdapter] = {}  # in load order
        self._names: dict[int, str] = {}  # of the served ones, by id
        self._evicted: set[int] = set()  # of the served ones, those that a resolver found
        self._flights: dict[str, _Flight] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._ids = itertools.count(1)

    async def lookup(self, name: str, principal: str | None = None) -> ServedAdapter | None:
        """Return the adapter of this name, loading it if a resolver knows it; None means the base model.

        Raises AdapterNotFound (also for a principal that may not use it), AdapterInvalid, ResolverFailed, or
        EngineOverloaded when too many names are being resolved.
        """
        if name in self._base_model_names:
            return None
        if not is_adapter_name(name) or not self._hooks.authorize(principal, name):
            raise AdapterNotFound(name)
        while (flight := self._flights.get(name) or self._start_if_needed(name)) is not None:
            if flight.is_resolution:
                return await flight.land()
            await asyncio.wait({flight.task})  # somebody adds this name by hand: look again afterwards
        return self._served[name]

    async def add(
        self, name: str, path: str, *, base_model_name: str | None = None, origin: Literal["static", "api"] = "api"
    ) -> ServedAdapter:
        """Load an adapter that the operator named; raises RequestInvalid for its name, AdapterInvalid for its files."""
        if name in self._base_model_names:
            raise RequestInvalid(
                f"The name '{name}' belongs to the base model; choose another one for the adapter.",
                param="lora_name",
                code="adapter_name_reserved",
            )
        if not is_adapter_name(name):
            raise RequestInvalid(
                f"The adapter name {name!r} must be 1 to 255 of A-Z a-z 0-9 . _ : @ / + -, start with a letter or a"
                " digit, and have no empty, '.' or '..' segment.",
                param="lora_name",
            )
        while (flight := self._flights.get(name)) is not None:
            await asyncio.wait({flight.task})
        if name in self._served:
            raise RequestInvalid(
                f"The lora adapter '{name}' has already been loaded. Unload it first: 'load_inplace' is not supported.",
                param="lora_name",
                code="adapter_already_loaded",
            )
        request = LoRARequest(name, next(self._ids), path, base_model_name)
        return await self._start(name, lambda _: self._serve(request, origin), is_resolution=False).land()

    async def remove(self, name: str | None = None, lora_int_id: int | None = None) -> ServedAdapter:
        """Stop serving an adapter, given by name, id or both; raises AdapterNotFound when there is no such one.

        A name that a resolver knows is loaded again, under a new id, when it is next asked for.
        """
        if name is None and lora_int_id is None:
            raise RequestInvalid(
                "Either 'lora_name' or 'lora_int_id' must be provided.",
                param="lora_name",
                code="missing_required_parameter",
            )
        key = name if name is not None else self._names.get(lora_int_id or 0, "")
        served = self._served.get(key)
        if served is None or lora_int_id not in (None, served.lora_request.lora_int_id):
            raise AdapterNotFound(name if name is not None else str(lora_int_id))
        self._forget(served)
        removal = asyncio.create_task(self._drop(served.lora_request))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)
        return served

    def adapters(self) -> list[ServedAdapter]:
        """Return all that is loaded, in load order."""
        return list(self._served.values())

    def adapters_for(self, principal: str | None) -> list[ServedAdapter]:
        """Return what the principal may use of all that is loaded, in load order."""
        return [served for name, served in self._served.items() if self._hooks.authorize(principal, name)]

    def notify_evicted(self, lora_int_id: int) -> None:
        """Take note that the host cache dropped an adapter's weights; it stays served and is read again when needed."""
        served = self._served.get(self._names.get(lora_int_id, ""))
        if served is None:
            return
        if served.origin == "resolver":
            self._evicted.add(lora_int_id)
        self._tell("evicted", served.lora_request)

    async def close(self) -> None:
        """Cancel what is being resolved, and wait for it; whoever waits gets ResolverFailed."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._removals, return_exceptions=True)

    def _start_if_needed(self, name: str) -> _Flight | None:
        served = self._served.get(name)
        if served is None:
            return self._start(name, self._resolve, is_resolution=True)
        if served.lora_request.lora_int_id in self._evicted:
            return self._start(name, self._load_again, is_resolution=True)
        return None

    def _start(
        self, name: str, work: Callable[[str], Coroutine[Any, Any, ServedAdapter]], *, is_resolution: bool
    ) -> _Flight:
        # Strangers' names keep out neither the operator nor what is served.
        if is_resolution and name not in self._served and len(self._flights) >= MAX_FLIGHTS:
            raise EngineOverloaded(f"{MAX_FLIGHTS} adapters are being loaded already; try again later")
        flight = _Flight(asyncio.create_task(self._fly(name, work), name=f"adapter {name}"), is_resolution)
        self._flights[name] = flight
        # Registered before any waiter, so it runs before them: none ever sees a flight that has ended.
        flight.task.add_done_callback(lambda _: self._flights.pop(name))
        return flight

    async def _fly(
        self, name: str, work: Callable[[str], Coroutine[Any, Any, ServedAdapter]]
    ) -> ServedAdapter | Exception:
        """Turn an error into a value: nobody may be left to catch it, and many may have to raise it."""
        try:
            return await work(name)
        except AdapterNotFound as exc:
            return exc
        except LoramuxError as exc:
            cause = None if isinstance(exc.__cause__, LoramuxError) else exc.__cause__  # a refusal is no fault
            logger.warning("adapter not available adapter=%s: %s", name, exc, exc_info=cause)
            return exc
        except Exception as exc:
            logger.exception("adapter failed adapter=%s", name)
            return exc

    async def _load_again(self, name: str) -> ServedAdapter:
        """Bring an evicted adapter back; when that fails, the resolvers say what has become of the name."""
        served = self._served.get(name)
        if served is None:  # removed in the meantime
            return await self._resolve(name)
        request = served.lora_request
        self._evicted.discard(request.lora_int_id)
        try:
            await self._load(request)
        except (AdapterInvalid, AdapterNotFound) as exc:
            if self._served.get(name) is served:
                logger.info("adapter cannot be loaded again adapter=%s id=%d: %s", name, request.lora_int_id, exc)
                self._tell("failed", request, reason=str(exc))
                self._forget(served)
                await self._drop(request)
        if self._served.get(name) is served:
            return served
        return await self._resolve(name)

    async def _resolve(self, name: str) -> ServedAdapter:
        try:
            found = await self._chain.resolve(self._base_model_names[0], name)
        except ResolverFailed as exc:
            self._hooks.adapter_event(AdapterEvent("failed", name, reason=str(exc)))
            raise
        request = replace(found, lora_int_id=next(self._ids))
        self._tell("resolved", request)
        return await self._serve(request, "resolver")

    async def _serve(self, request: LoRARequest, origin: Origin) -> ServedAdapter:
        try:
            await self._load(request)
        except Exception as exc:
            self._tell("failed", request, reason=str(exc))
            raise
        parent = request.base_model_name
        if parent not in self._base_model_names:
            parent = self._base_model_names[0]
        served = ServedAdapter(request, parent, request.lora_path, int(time.time()), origin)
        self._served[request.lora_name] = served
        self._names[request.lora_int_id] = request.lora_name
        self._tell("loaded", request)
        return served

    def _forget(self, served: ServedAdapter) -> None:
        request = served.lora_request
        del self._served[request.lora_name], self._names[request.lora_int_id]
        self._evicted.discard(request.lora_int_id)

    async def _drop(self, request: LoRARequest) -> None:
        await self._unload(request.lora_int_id)
        self._tell("unloaded", request)

    def _tell(
        self,
        kind: Literal["resolved", "loaded", "failed", "evicted", "unloaded"],
        request: LoRARequest,
        *,
        reason: str | None = None,
    ) -> None:
        self._hooks.adapter_event(AdapterEvent(kind, request.lora_name, request.lora_int_id, request.lora_path, reason))
