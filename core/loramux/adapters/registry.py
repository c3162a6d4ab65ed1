"""AdapterRegistry: from a model name to the base model, a served adapter, or the resolvers.

Names that nobody knows leave nothing behind. One name is loaded by one flight at a time, however many ask for it. A
name points to one generation: content with an id that is never given twice. A newer generation is loaded beside the old
one, then takes over new requests; the old one goes when the last request that uses it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.aliases import Aliases
from loramux.adapters.flights import Flight, Flights
from loramux.adapters.generation_loader import GenerationLoader
from loramux.adapters.resolution import Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter, Origin, ServedAdapter
from loramux.errors import (
    AdapterInvalid,
    AdapterLoading,
    AdapterNotFound,
    EngineOverloaded,
    LoramuxError,
    RequestInvalid,
)
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

MAX_FLIGHTS = 256
MAX_REFRESHES = 16
MAX_SERVED = 16_384
RETRY_REFRESH_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """lora_wait_seconds: how long a request waits for its adapter; the work goes on without it.

    flight_seconds: how long finding, fetching and loading one adapter may take in all.
    """

    lora_wait_seconds: float = 30.0
    flight_seconds: float = 180.0


class AdapterRegistry:
    """The one owner of names and ids. All methods belong to one event loop.

    `load` brings an adapter into host memory and says what it is; `unload` frees it once no request holds it.
    """

    def __init__(
        self,
        base_model_names: Sequence[str],
        chain: ResolverChain,
        load: Callable[[LoRARequest], Awaitable[LoadedAdapter]],
        unload: Callable[[int], Awaitable[object]],
        hooks: PluginHooks | None = None,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_model_names = tuple(base_model_names)
        self._load = load
        self._unload = unload
        self._hooks = hooks or PluginHooks()
        self._loader = GenerationLoader(self._base_model_names, chain, load, self._hooks)
        self._patience = patience or Patience()
        self._clock = clock
        self.aliases = Aliases()
        self._served: dict[str, ServedAdapter] = {}  # in load order
        self._names: dict[int, str] = {}  # of the served ones, by id
        self._evicted: set[int] = set()  # of the served ones, those whose weights have left host memory
        self._check_at: dict[int, float] = {}  # of the served ones that a resolver found, when to ask it again
        self._num_uses: Counter[int] = Counter()
        self._retired: dict[int, ServedAdapter] = {}  # for no new requests, but some still use them
        self._flights = Flights(self._patience.flight_seconds)
        self._refreshes: dict[str, asyncio.Task[None]] = {}
        self._removals: set[asyncio.Task[None]] = set()

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
        self._num_uses[served.id] += 1  # nothing was awaited since the lookup: it is still served
        try:
            yield served
        finally:
            self._end_use(served)

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
        if (served := self._ready(target)) is not None:
            return served
        try:
            async with asyncio.timeout(self._patience.lora_wait_seconds) as limit:
                return await self._arrive(target)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise AdapterLoading(name) from exc
        except AdapterNotFound as exc:
            raise AdapterNotFound(name) from exc.__cause__

    def adapters(self) -> list[ServedAdapter]:
        """Return all that is loaded, in load order."""
        return list(self._served.values())

    def adapters_for(self, principal: str | None) -> list[ServedAdapter]:
        """Return what the principal may use of all that is loaded, in load order."""
        return [served for name, served in self._served.items() if self._hooks.authorize(principal, name)]

    def aliases_for(self, principal: str | None) -> dict[str, str]:
        """Return the aliases that the principal may use, with what they stand for."""
        aliases = self.aliases.items().items()
        return {alias: target for alias, target in aliases if self._hooks.authorize(principal, alias)}

    def explain(self, name: str) -> Trace | None:
        """Return what the resolvers said of a name when they were last asked for it; None when that is forgotten."""
        return self._loader.explain(self.aliases.target_of(name))

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
        self._check_addable(name)
        deadline = asyncio.get_running_loop().time() + self._patience.lora_wait_seconds
        try:
            async with asyncio.timeout_at(deadline) as limit:
                while (flight := self._flights.get(name)) is not None:
                    await asyncio.wait({flight.task})
                if name in self._served and not replaces:
                    raise RequestInvalid(
                        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                        "set 'load_inplace' to true.",
                        param="lora_name",
                        code="adapter_already_loaded",
                    )
                request = LoRARequest(name, 1, path, base_model_name)  # the loader gives the id
                flight = self._flights.start(name, lambda _: self._serve_given(request, origin), is_resolution=False)
                return await flight.land()
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise AdapterLoading(name) from exc

    async def load(self, name: str) -> ServedAdapter:
        """Find and load an adapter through the resolvers, as a request would, even if it was unknown a moment ago.

        Raises what `lookup` raises, and RequestInvalid for the base model's name.
        """
        self._check_addable(name)
        self._loader.forget_unknown(name)
        served = await self.lookup(name)
        assert served is not None
        return served

    async def remove(self, name: str | None = None, lora_int_id: int | None = None) -> ServedAdapter:
        """Stop serving an adapter, given by name, id or both; raises AdapterNotFound when there is no such one.

        Requests that use it end first, then it leaves memory. A name that a resolver knows is loaded again, under a
        new id, when it is next asked for.
        """
        if name is None and lora_int_id is None:
            raise RequestInvalid(
                "Either 'lora_name' or 'lora_int_id' must be provided.",
                param="lora_name",
                code="missing_required_parameter",
            )
        key = name if name is not None else self._names.get(lora_int_id or 0, "")
        served = self._served.get(key)
        if served is None or lora_int_id not in (None, served.id):
            raise AdapterNotFound(name if name is not None else str(lora_int_id))
        removal = self._retire(served)
        if removal is not None:
            await asyncio.shield(removal)
        return served

    def move_alias(self, alias: str, target: str | None, **expectation: Any) -> str | None:
        """Let an alias stand for another adapter; see Aliases.move. Names of models are no aliases."""
        if alias in self._base_model_names or alias in self._served:
            raise RequestInvalid(
                f"The name '{alias}' belongs to a model; choose another one for the alias.",
                param="alias",
                code="adapter_name_reserved",
            )
        return self.aliases.move(alias, target, **expectation)

    def notify_evicted(self, lora_int_id: int) -> None:
        """Take note that the host cache dropped an adapter's weights; it stays served and is read again when needed."""
        served = self._served.get(self._names.get(lora_int_id, ""))
        if served is None:
            return
        self._evicted.add(lora_int_id)
        self._loader.tell("evicted", served.lora_request)

    async def close(self) -> None:
        """Cancel what is being resolved, and wait for it; whoever waits gets ResolverFailed."""
        refreshes = list(self._refreshes.values())
        for task in refreshes:
            task.cancel()
        await self._flights.close()
        await asyncio.gather(*refreshes, *self._removals, return_exceptions=True)

    # --- the way to a served adapter

    def _ready(self, name: str) -> ServedAdapter | None:
        """Return what can be used at once; ask its source behind the scenes when that is due."""
        served = self._served.get(name)
        if served is None or served.id in self._evicted:
            return None
        due = self._check_at.get(served.id)
        if due is not None and self._clock() >= due and name not in self._refreshes:
            self._start_refresh(served)
        return served

    async def _arrive(self, name: str) -> ServedAdapter:
        while True:
            flight = self._flights.get(name) or self._start_flight(name)
            if flight.is_resolution:
                served = await flight.land()
            else:
                await asyncio.wait({flight.task})  # somebody adds this name by hand: look again afterwards
            current = self._ready(name)
            if current is not None:
                return current
            if flight.is_resolution and served.id in self._evicted:
                return served  # evicted the moment it was there: the engine reads it again

    def _start_flight(self, name: str) -> Flight:
        if name in self._served:
            return self._flights.start(name, self._load_again, is_resolution=True)
        # Strangers' names keep out neither the operator nor what is served.
        if len(self._flights) >= MAX_FLIGHTS:
            raise EngineOverloaded(f"{MAX_FLIGHTS} adapters are being loaded already; try again later")
        return self._flights.start(name, self._resolve, is_resolution=True)

    async def _load_again(self, name: str) -> ServedAdapter:
        """Bring an evicted adapter back; when that fails or its files have changed, it is found anew."""
        served = self._served.get(name)
        if served is None:  # removed in the meantime
            return await self._resolve(name)
        self._evicted.discard(served.id)
        try:
            await self._load(served.lora_request)
        except (AdapterInvalid, AdapterNotFound) as exc:
            if self._served.get(name) is not served:
                return await self._resolve(name)
            logger.info("adapter cannot be loaded again adapter=%s id=%d: %s", name, served.id, exc)
            if served.origin != "resolver":
                self._evicted.add(served.id)
                return await self._serve_given(replace(served.lora_request, digest=None), served.origin)
            self._loader.tell("failed", served.lora_request, reason=str(exc))
            self._retire(served)
        if self._served.get(name) is served:
            return served
        return await self._resolve(name)

    async def _resolve(self, name: str) -> ServedAdapter:
        found, trace = await self._loader.find(name)
        served = await self._loader.load_found(found, trace)
        self._install(served, found.revalidate_seconds)
        return served

    async def _serve_given(self, request: LoRARequest, origin: Origin) -> ServedAdapter:
        served = await self._loader.load_given(request, origin)
        self._install(served, None)
        return served

    def _install(self, served: ServedAdapter, revalidate_seconds: float | None) -> None:
        """Let new requests have this generation; the one before goes when its last request ends."""
        before = self._served.get(served.name)
        if before is not None:
            self._retire(before)
        self._served[served.name] = served
        self._names[served.id] = served.name
        self._schedule_check(served, revalidate_seconds)
        self._loader.tell("loaded", served.lora_request)
        if len(self._served) > MAX_SERVED:
            self._forget_an_idle_one()

    def _forget_an_idle_one(self) -> None:
        for lora_int_id in self._evicted:
            served = self._served[self._names[lora_int_id]]
            if served.origin == "resolver" and not self._num_uses[lora_int_id]:
                self._retire(served)
                return

    # --- the way out

    def _end_use(self, served: ServedAdapter) -> None:
        self._num_uses[served.id] -= 1
        if self._num_uses[served.id] == 0:
            del self._num_uses[served.id]
            if self._retired.pop(served.id, None) is not None:
                self._start_removal(served)

    def _retire(self, served: ServedAdapter) -> asyncio.Task[None] | None:
        """Give it to no new request; return the task that frees it, or None when requests that use it end first."""
        del self._served[served.name], self._names[served.id]
        self._evicted.discard(served.id)
        self._check_at.pop(served.id, None)
        if self._num_uses[served.id]:
            self._retired[served.id] = served
            return None
        return self._start_removal(served)

    def _start_removal(self, served: ServedAdapter) -> asyncio.Task[None]:
        removal = asyncio.create_task(self._drop(served.lora_request))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    async def _drop(self, request: LoRARequest) -> None:
        await self._unload(request.lora_int_id)
        self._loader.tell("unloaded", request)

    # --- newer generations

    def _schedule_check(self, served: ServedAdapter, seconds: float | None) -> None:
        if seconds is not None:
            self._check_at[served.id] = self._clock() + seconds

    def _start_refresh(self, served: ServedAdapter) -> None:
        if len(self._refreshes) >= MAX_REFRESHES or self._flights.get(served.name) is not None:
            return
        task = asyncio.create_task(self._refresh(served), name=f"refresh {served.name}")
        self._refreshes[served.name] = task
        task.add_done_callback(lambda _: self._refreshes.pop(served.name))

    async def _refresh(self, served: ServedAdapter) -> None:
        """Ask the source what has become of an adapter; whatever goes wrong, the present generation stays."""
        name = served.name
        try:
            async with asyncio.timeout(self._patience.flight_seconds):
                await self._succeed(served)
        except AdapterNotFound:
            if self._served.get(name) is served:
                logger.info("adapter is gone at its source adapter=%s id=%d", name, served.id)
                self._retire(served)
        except (LoramuxError, TimeoutError) as exc:
            logger.warning("adapter not refreshed, the present one stays adapter=%s id=%d: %s", name, served.id, exc)
            if self._served.get(name) is served:
                self._check_at[served.id] = self._clock() + RETRY_REFRESH_SECONDS
        except Exception:
            logger.exception("refresh failed adapter=%s", name)

    async def _succeed(self, served: ServedAdapter) -> None:
        found, trace = await self._loader.find(served.name, is_refresh=True)
        if found.revision and (found.revision, found.root) == (served.revision, served.root):
            found.release()
            self._keep(served, served, found.revalidate_seconds)
            return
        successor = await self._loader.load_found(found, trace)
        if successor.digest == served.digest or self._served.get(served.name) is not served:
            self._start_removal(successor)  # the same content, or somebody else was faster
            updated = replace(served, revision=found.revision, root=found.root)
            self._keep(served, updated, found.revalidate_seconds)
            return
        logger.info("adapter has a new generation adapter=%s id=%d -> %d", served.name, served.id, successor.id)
        self._install(successor, found.revalidate_seconds)

    def _keep(self, served: ServedAdapter, updated: ServedAdapter, revalidate_seconds: float | None) -> None:
        if self._served.get(served.name) is served:
            self._served[served.name] = updated
            self._schedule_check(updated, revalidate_seconds)

    # --- checks and news

    def _check_addable(self, name: str) -> None:
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
