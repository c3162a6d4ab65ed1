"""AdapterRegistry: from a model name to the base model, a served adapter, or the resolvers.

Names that nobody knows leave nothing behind. One name is loaded by one flight at a time, however many ask for it. A
name points to one generation: content with an id that is never given twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.aliases import Aliases
from loramux.adapters.arrivals import Arrivals
from loramux.adapters.failures import Failure
from loramux.adapters.flights import Flights
from loramux.adapters.generation_loader import GenerationLoader
from loramux.adapters.generations import Generations, GenerationUse
from loramux.adapters.pins import Memory, Pins
from loramux.adapters.refresher import Refresher
from loramux.adapters.resolution import Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter, ServedAdapter
from loramux.errors import (
    AdapterLoading,
    AdapterNotFound,
    RequestInvalid,
)
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """lora_wait_seconds: how long a request waits for its adapter; the work goes on without it.

    flight_seconds: how long finding, fetching and loading one adapter may take in all.
    """

    lora_wait_seconds: float = 30.0
    flight_seconds: float = 180.0


class AdapterRegistry:
    """The one owner of names and ids. All methods belong to one event loop.

    `load` brings an adapter into host memory and says what it is; `unload` frees it once no request holds it. Without
    a `memory` to ask, nothing can be pinned.
    """

    def __init__(
        self,
        base_model_names: Sequence[str],
        chain: ResolverChain,
        load: Callable[[LoRARequest], Awaitable[LoadedAdapter]],
        unload: Callable[[int], Awaitable[object]],
        hooks: PluginHooks | None = None,
        *,
        memory: Memory | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_model_names = tuple(base_model_names)
        self._patience = patience or Patience()
        self._unload = unload
        self._hooks = hooks or PluginHooks()
        self._loader = GenerationLoader(self._base_model_names, chain, load, self._hooks)
        self._pins = Pins(memory)
        self._generations = Generations(self._drop, self._pins.hand_over)
        self._refresher = Refresher(
            self._loader, self._generations, limit_seconds=self._patience.flight_seconds, clock=clock
        )
        self._flights = Flights(self._patience.flight_seconds)
        self._arrivals = Arrivals(load, self._loader, self._generations, self._refresher, self._flights)
        self.aliases = Aliases()

    # --- requests

    @asynccontextmanager
    async def use(self, name: str, principal: str | None = None) -> AsyncIterator[ServedAdapter | None]:
        """Look a name up and keep that generation until the end: the request never sees another one. None = the base.

        Raises what `lookup` raises.
        """
        served = await self.lookup(name, principal)
        if served is None:
            yield None
            return
        self._generations.begin_use(served)  # nothing was awaited since the lookup: it is still current
        try:
            yield served
        finally:
            self._generations.end_use(served)

    async def lookup(self, name: str, principal: str | None = None) -> ServedAdapter | None:
        """Return the adapter of this name, loading it if a resolver knows it; None means the base model.

        Raises AdapterNotFound (also for a principal that may not use it), AdapterInvalid, ResolverFailed,
        AdapterLoading when it takes longer than a request may wait, or EngineOverloaded when too many names are being
        resolved.
        """
        if name in self._base_model_names:
            return None
        if not is_adapter_name(name) or not self._hooks.authorize(principal, name):
            raise AdapterNotFound(name)
        target = self.aliases.target_of(name)
        if target in self._base_model_names:
            return None
        if (served := self._arrivals.ready(target)) is not None:
            return served
        try:
            async with self._patiently(name):
                return await self._arrivals.arrive(target)
        except AdapterNotFound as exc:
            raise AdapterNotFound(name) from exc.__cause__

    def current(self, name: str) -> ServedAdapter | None:
        """Return the generation that this name, or alias, points to now, without looking for it; None for the base."""
        return self._generations.current(self.aliases.target_of(name))

    def adapters(self) -> list[ServedAdapter]:
        """Return all that is loaded, in load order."""
        return self._generations.all_current()

    def allows(self, principal: str | None, name: str) -> bool:
        """Whether the plugins let this principal use what goes by this name."""
        return self._hooks.authorize(principal, name)

    def is_at_hand(self, name: str) -> bool:
        """Whether a name, or what it stands for, is in memory or on its way there: asking for it costs nothing more."""
        target = self.aliases.target_of(name)
        if target in self._base_model_names or self._flights.get(target) is not None:
            return True
        served = self._generations.current(target)
        return served is not None and not self._generations.is_evicted(served)

    @property
    def num_loading(self) -> int:
        """How many names are being found or loaded."""
        return len(self._flights)

    def sources(self) -> list[tuple[str, float]]:
        """Return each resolver's name and for how many seconds it is left alone, in the order of asking."""
        return self._loader.sources()

    def explain(self, name: str) -> Trace | None:
        """Return what the resolvers said of a name when they were last asked for it; None when that is forgotten."""
        return self._loader.explain(self.aliases.target_of(name))

    def failures(self) -> list[Failure]:
        """Return what went wrong lately, the latest first; reasons may name places."""
        return list(self._loader.failures)

    # --- operators

    async def add(
        self,
        name: str,
        path: str,
        *,
        base_model_name: str | None = None,
        origin: Literal["static", "api"] = "api",
        replaces: bool = False,
    ) -> ServedAdapter:
        """Load an adapter that the operator named; with `replaces`, beside the present one, which it then succeeds.

        Raises RequestInvalid for its name, AdapterInvalid for its files, AdapterLoading when it takes long: it goes on.
        """
        request = LoRARequest(name, 1, path, base_model_name)  # the loader gives the id
        return await self._do_by_hand(
            name,
            lambda _: self._arrivals.serve_given(request, origin),
            replaces=replaces,
            is_patient=origin == "static",  # the start waits for its adapters
        )

    async def load(self, name: str, *, replaces: bool = False) -> ServedAdapter:
        """Find and load an adapter through the resolvers, even if it was unknown or invalid a moment ago.

        With `replaces`, a served one is looked for again, and succeeded if there is another version. Raises what
        `lookup` raises, and RequestInvalid for its name.
        """
        return await self._do_by_hand(name, self._arrivals.load_anew, replaces=replaces)

    async def _do_by_hand(
        self,
        name: str,
        work: Callable[[str], Awaitable[ServedAdapter]],
        *,
        replaces: bool,
        is_patient: bool = False,
    ) -> ServedAdapter:
        """Do what an operator asked for, after what is under way for the name; the work goes on after the wait."""
        async with self._patiently(name, is_patient=is_patient):
            while (flight := self._flights.get(name)) is not None:
                await asyncio.wait({flight.task})
            self._check_addable(name, replaces=replaces)
            served = await self._flights.start(name, work, is_resolution=False).land()
            await self._pins.settle()
            return served

    async def remove(self, name: str | None = None, lora_int_id: int | None = None) -> ServedAdapter:
        """Stop serving an adapter, given by name, id or both; raises AdapterNotFound when there is no such one.

        Requests that use it end first, then it leaves memory. A name that a resolver knows is loaded again, under a
        new id, when it is next asked for.
        """
        served = self._served(name, lora_int_id)
        removal = self._generations.retire(served)
        if removal is not None:
            await asyncio.shield(removal)
        return served

    async def pin(self, name: str | None = None, lora_int_id: int | None = None) -> ServedAdapter:
        """Keep a served adapter in memory, after reading it again if it has left; whoever succeeds it inherits that.

        Raises AdapterNotFound, RequestInvalid when no place would be left for the others, AdapterLoading.
        """
        async with self._patiently(name or str(lora_int_id)):
            while True:
                current = self._served(name, lora_int_id)
                served = self._arrivals.ready(current.name) or await self._arrivals.arrive(current.name)
                await self._pins.pin(served)
                if self._generations.is_current(served):
                    return served
                await self._pins.unpin(served)  # replaced at this very moment

    async def unpin(self, name: str | None = None, lora_int_id: int | None = None) -> ServedAdapter:
        """Let a served adapter be evicted again; harmless when it is not pinned. Raises AdapterNotFound."""
        served = self._served(name, lora_int_id)
        await self._pins.unpin(served)
        return served

    def uses(self) -> list[GenerationUse]:
        """Return how everything is used that is loaded, or that only ends what it has begun, in load order."""
        return self._generations.uses()

    def _served(self, name: str | None, lora_int_id: int | None) -> ServedAdapter:
        """Return what is served under this name, id or both; raises AdapterNotFound."""
        if name is None and lora_int_id is None:
            raise RequestInvalid(
                "Either 'lora_name' or 'lora_int_id' must be provided.",
                param="lora_name",
                code="missing_required_parameter",
            )
        current = self._generations
        served = current.current(name) if name is not None else current.current_by_id(lora_int_id or 0)
        if served is None or lora_int_id not in (None, served.id):
            raise AdapterNotFound(name if name is not None else str(lora_int_id))
        return served

    def move_alias(self, alias: str, target: str | None, **expectation: Any) -> str | None:
        """Let an alias stand for another adapter; see Aliases.move. Names of models are no aliases."""
        is_taken = self._generations.current(alias) is not None or self._flights.get(alias) is not None
        if alias in self._base_model_names or is_taken:
            raise RequestInvalid(
                f"The name '{alias}' belongs to a model; choose another one for the alias.",
                param="alias",
                code="adapter_name_reserved",
            )
        return self.aliases.move(alias, target, **expectation)

    def notify_evicted(self, lora_int_id: int) -> None:
        """Take note that the host cache dropped an adapter's weights; it stays served and is read again when needed."""
        served = self._generations.current_by_id(lora_int_id)
        if served is not None:
            self._generations.set_evicted(served, is_evicted=True)
            self._loader.tell("evicted", served.lora_request)

    async def close(self) -> None:
        """Cancel what is being resolved, and wait for it; whoever waits gets ResolverFailed."""
        await self._refresher.close()
        await self._flights.close()
        await self._generations.close()
        await self._pins.close()

    @asynccontextmanager
    async def _patiently(self, name: str, *, is_patient: bool = False) -> AsyncIterator[None]:
        """Raise AdapterLoading for what takes longer than a request may wait; the work goes on without it."""
        try:
            async with asyncio.timeout(None if is_patient else self._patience.lora_wait_seconds) as limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            loading = AdapterLoading(name)
            self._loader.failures.note(name, loading, self.explain(name) or Trace(name))
            raise loading from exc

    async def _drop(self, served: ServedAdapter) -> None:
        await self._unload(served.id)
        self._loader.tell("unloaded", served.lora_request)

    # --- checks and news

    def _check_addable(self, name: str, *, replaces: bool) -> None:
        if self._generations.current(name) is not None and not replaces:
            raise RequestInvalid(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to true.",
                param="lora_name",
                code="adapter_already_loaded",
            )
        if name in self._base_model_names or name in self.aliases:
            owner = "an alias" if name in self.aliases else "the base model"
            raise RequestInvalid(
                f"The name '{name}' belongs to {owner}; choose another one for the adapter.",
                param="lora_name",
                code="adapter_name_reserved",
            )
        if not is_adapter_name(name):
            raise RequestInvalid(
                f"The adapter name {name!r} must be 1 to 255 of A-Z a-z 0-9 . _ : @ / + -, start with a letter or a"
                " digit, and have no empty, '.' or '..' segment.",
                param="lora_name",
            )
