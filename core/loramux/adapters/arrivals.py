"""Arrivals: how a name comes to a served adapter: it is ready, on its way, brought back, or found.

One name has one flight at a time, however many ask for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from loramux.adapters.flights import Flight, Flights
from loramux.adapters.generation_loader import GenerationLoader
from loramux.adapters.generations import Generations
from loramux.adapters.refresher import Refresher
from loramux.adapters.served_adapter import LoadedAdapter, Origin, ServedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, EngineOverloaded
from loramux.lora.request import LoRARequest

logger = logging.getLogger(__name__)

MAX_FLIGHTS = 256


class Arrivals:
    """Brings adapters to the registry's generations. All methods belong to the registry's event loop."""

    def __init__(
        self,
        load: Callable[[LoRARequest], Awaitable[LoadedAdapter]],
        loader: GenerationLoader,
        generations: Generations,
        refresher: Refresher,
        flights: Flights,
    ) -> None:
        self._load = load
        self._loader = loader
        self._generations = generations
        self._refresher = refresher
        self._flights = flights

    def ready(self, name: str) -> ServedAdapter | None:
        """Return what can be used at once; its source is asked again behind the scenes when that is due."""
        served = self._generations.current(name)
        if served is None or self._generations.is_evicted(served):
            return None
        if self._flights.get(name) is None:
            self._refresher.refresh_if_due(served)
        return served

    async def arrive(self, name: str) -> ServedAdapter:
        """Return what the flight of a name brings, which starts if there is none; it goes on if the caller leaves.

        Raises AdapterNotFound, AdapterInvalid, ResolverFailed, or EngineOverloaded when too many are under way.
        """
        while True:
            flight = self._flights.get(name) or self._start_flight(name)
            if flight.is_resolution:
                served = await flight.land()
            else:
                await asyncio.wait({flight.task})  # somebody adds this name by hand: look again afterwards
            current = self.ready(name)
            if current is not None:
                return current
            if flight.is_resolution and self._generations.is_current(served):
                return served  # evicted the moment it was there: the engine reads it again

    def _start_flight(self, name: str) -> Flight:
        if self._generations.current(name) is not None:
            return self._flights.start(name, self._load_again, is_resolution=True)
        # Strangers' names keep out neither the operator nor what is served.
        if len(self._flights) >= MAX_FLIGHTS and not self._flights.abandon_one():
            raise EngineOverloaded(f"{MAX_FLIGHTS} adapters are being loaded already; try again later")
        return self._flights.start(name, self._resolve, is_resolution=True)

    async def _load_again(self, name: str) -> ServedAdapter:
        """Bring an evicted adapter back; when that fails or its files have changed, it is found anew."""
        served = self._generations.current(name)
        if served is None:  # removed in the meantime
            return await self._resolve(name)
        self._generations.set_evicted(served, is_evicted=False)
        try:
            await self._load(served.lora_request)
        except (AdapterInvalid, AdapterNotFound) as exc:
            if not self._generations.is_current(served):
                return await self._resolve(name)
            logger.info("adapter cannot be loaded again adapter=%s id=%d: %s", name, served.id, exc)
            if served.origin != "resolver":
                self._generations.set_evicted(served, is_evicted=True)
                return await self.serve_given(replace(served.lora_request, digest=None), served.origin)
            self._loader.failures.note(name, exc)
            self._loader.tell("failed", served.lora_request, reason=str(exc))
            self._generations.retire(served)
        if self._generations.is_current(served):
            return served
        return await self._resolve(name)

    async def _resolve(self, name: str) -> ServedAdapter:
        found, trace = await self._loader.find(name)
        served = await self._loader.load_found(found, trace)
        self._install(served, found.revalidate_seconds)
        return served

    async def load_anew(self, name: str) -> ServedAdapter:
        """Look for a name although it was unknown or invalid a moment ago, or for the successor of what is served."""
        self._loader.forget(name)
        served = self._generations.current(name)
        if served is None:
            return await self._resolve(name)
        if served.origin != "resolver":
            return await self.serve_given(replace(served.lora_request, digest=None), served.origin)
        await self._refresher.look_for_successor(served)
        return self._generations.current(name) or served

    async def serve_given(self, request: LoRARequest, origin: Origin) -> ServedAdapter:
        """Read and serve a folder that the operator named; raises AdapterInvalid."""
        served = await self._loader.load_given(request, origin)
        self._install(served, None)
        return served

    def _install(self, served: ServedAdapter, revalidate_seconds: float | None) -> None:
        self._generations.install(served, check_at=self._refresher.due_after(revalidate_seconds))
        self._loader.tell("loaded", served.lora_request, seconds=served.load_seconds)
