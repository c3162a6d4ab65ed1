"""Which model a request means, found by name, held to the request's end, and told in the response's headers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterNotFound
from loramux.lora.hookspecs import FoundIn
from loramux.lora.request import LoRARequest
from loramux.server.access.auth import principal_of
from loramux.server.access.principal import Principal
from loramux.server.observing.exchange import note_model
from loramux.server.state import SERVER, Server

HEADERS = (
    "X-Loramux-Adapter-Generation",
    "X-Loramux-Adapter-Digest",
    "X-Loramux-Adapter-Tier",
    "X-Loramux-Adapter-Milliseconds",
)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model that answers; `served` is None for the base model.

    `tier` is where the adapter was when it was asked for: "slot" (on the device), "host" (host memory), "disk" (a local
    folder or the store) or "source" (fetched for this request). `milliseconds` is what it took to get it into host
    memory, waiting for others' loads included.
    """

    name: str
    served: ServedAdapter | None = None
    tier: FoundIn | None = None
    milliseconds: float = 0.0

    @property
    def lora_request(self) -> LoRARequest | None:
        """What the engine is given; None for the base model."""
        return None if self.served is None else self.served.lora_request

    def headers(self) -> dict[str, str]:
        """What a response says of its adapter; nothing for the base model."""
        if self.served is None:
            return {}
        values = (str(self.served.id), self.served.digest, self.tier or "", f"{self.milliseconds:.1f}")
        return dict(zip(HEADERS, values, strict=True))


_CHOICE = web.RequestKey("model_choice", ModelChoice)


@asynccontextmanager
async def choose_model(request: web.Request, name: str | None) -> AsyncIterator[ModelChoice]:
    """Find the model by name, asking the resolvers when it is new, and keep it to the end; None means the base model.

    Raises AdapterNotFound, also for what the principal may not use, AdapterInvalid, AdapterLoading, ResolverFailed, or
    Refused for a principal that asks for too many new names.
    """
    server = request.app[SERVER]
    principal = principal_of(request)
    if not may_use(server, principal, name or server.base_model_names[0]):
        raise AdapterNotFound(name or server.base_model_names[0])  # before anything is looked up: no answer tells more
    if name is None:
        note_model(None)
        yield ModelChoice(server.base_model_names[0])
        return
    if not server.registry.is_at_hand(name):
        server.limiter.count_new_adapter(principal)
    started = time.perf_counter()
    tier_before = _tier_before(server, name)
    async with server.registry.use(name, principal.id) as served:
        if served is None:
            note_model(None)
            yield ModelChoice(name)
            return
        tier = tier_before or _tier_on_arrival(server, name, served)
        note_model(served, tier)
        choice = ModelChoice(name, served, tier, (time.perf_counter() - started) * 1000)
        request[_CHOICE] = choice
        yield choice


def may_use(server: Server, principal: Principal, name: str) -> bool:
    """Whether the principal's key lets it use the model of this name, or what the alias of this name stands for."""
    target = server.registry.aliases.target_of(name)
    if target in server.base_model_names:
        return principal.may_use_base
    return is_adapter_name(target) and principal.allows(target)


def choice_of(request: web.Request) -> ModelChoice | None:
    """Return what `choose_model` found for this request, if it got so far."""
    return request.get(_CHOICE)


def _tier_before(server: Server, name: str) -> FoundIn | None:
    """Where a served adapter is; None for a name that must be looked for."""
    served = server.registry.current(name)
    if served is None:
        return None
    residency = server.engine.residency(served.id)
    return "disk" if residency is None else residency.tier


def _tier_on_arrival(server: Server, name: str, served: ServedAdapter) -> FoundIn:
    """Tell what was fetched just now from what was on the disk; remote roots are URLs."""
    trace = server.registry.explain(name)
    is_fetched = trace is not None and any(step.verdict == "found" for step in trace.steps)
    return "source" if is_fetched and "://" in served.root else "disk"
