"""GenerationLoader: from a name or a folder to loaded content under a new id, with a trace of how it was found."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal

from cachetools import LRUCache

from loramux.adapters.failures import Failures
from loramux.adapters.resolution import Found, Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter, Origin, ServedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, LoramuxError, ResolverFailed
from loramux.lora.hookspecs import AdapterEvent
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest

MAX_TRACES = 256

EventKind = Literal["resolved", "loaded", "failed", "evicted", "unloaded"]


class GenerationLoader:
    """Gives every generation its id, and tells the plugins. All methods belong to the registry's event loop."""

    def __init__(
        self,
        base_model_names: Sequence[str],
        chain: ResolverChain,
        load: Callable[[LoRARequest], Awaitable[LoadedAdapter]],
        hooks: PluginHooks,
    ) -> None:
        self._base_model_names = tuple(base_model_names)
        self._chain = chain
        self._load = load
        self._hooks = hooks
        self._ids = itertools.count(1)
        self._traces: LRUCache[str, Trace] = LRUCache(MAX_TRACES)
        self.failures = Failures()

    async def find(self, name: str, *, is_refresh: bool = False) -> tuple[Found, Trace]:
        """Ask the resolvers; the answer must be given to `load_found`, or released. Raises what the chain raises."""
        trace = self._traces[name] = Trace(name)
        try:
            found = await self._chain.resolve(self._base_model_names[0], name, trace, is_refresh=is_refresh)
        except AdapterNotFound:
            raise
        except LoramuxError as exc:
            self.failures.note(name, exc, trace)
            if isinstance(exc, ResolverFailed):
                self._hooks.adapter_event(AdapterEvent("failed", name, reason=str(exc)))
            raise
        return found, trace

    async def load_found(self, found: Found, trace: Trace) -> ServedAdapter:
        """Read what was found, and release it; raises AdapterInvalid."""
        try:
            started = trace.clock()
            try:
                served = await self._read(found.lora_request, "resolver", root=found.root, trace=trace)
            except AdapterInvalid as exc:
                trace.add("engine", "invalid", exc.reason, since=started)
                await self._chain.reject(self._base_model_names[0], found, exc)
                raise
            if found.confirm is not None:
                await asyncio.to_thread(found.confirm)
            trace.add("engine", "loaded", f"sha256 {served.digest}", since=started)
            seconds = sum(step.milliseconds for step in trace.steps) / 1000
            return replace(
                served,
                revision=found.revision,
                resolver=found.resolver,
                load_seconds=seconds,
                defaults=found.defaults,
            )
        finally:
            found.release()

    async def load_given(self, request: LoRARequest, origin: Origin) -> ServedAdapter:
        """Read a folder that the operator named; raises AdapterInvalid."""
        started = time.perf_counter()
        served = await self._read(request, origin, root=request.lora_path)
        return replace(served, load_seconds=time.perf_counter() - started)

    def forget(self, name: str) -> None:
        """Let a name be found anew, although it may have been unknown or invalid a moment ago."""
        self._chain.forget(name)

    def explain(self, name: str) -> Trace | None:
        """Return what was said of a name when it was last looked for; None when that is forgotten."""
        return self._traces.get(name)

    def sources(self) -> list[tuple[str, float]]:
        """Return each resolver's name and for how many seconds it is left alone."""
        return self._chain.states()

    def tell(
        self, kind: EventKind, request: LoRARequest, *, reason: str | None = None, seconds: float | None = None
    ) -> None:
        """Tell the plugins of a step in an adapter's life."""
        event = AdapterEvent(
            kind, request.lora_name, request.lora_int_id, request.lora_path, reason, request.digest, seconds
        )
        self._hooks.adapter_event(event)

    async def _read(
        self, request: LoRARequest, origin: Origin, *, root: str, trace: Trace | None = None
    ) -> ServedAdapter:
        request = replace(request, lora_int_id=next(self._ids))
        if origin == "resolver":
            self.tell("resolved", request)
        try:
            loaded = await self._load(request)
        except Exception as exc:
            self.failures.note(request.lora_name, exc, trace)
            self.tell("failed", request, reason=str(exc))
            raise
        parent = request.base_model_name
        if parent not in self._base_model_names:
            parent = self._base_model_names[0]
        pinned = replace(request, digest=loaded.digest)
        return ServedAdapter(pinned, parent, root, int(time.time()), origin, loaded=loaded)
