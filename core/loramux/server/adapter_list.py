"""GET /v1/lora_adapters: every adapter that is served, where it rests now, where it came from and how it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiohttp import web

from loramux.adapters.generations import GenerationUse
from loramux.adapters.residency import Residency
from loramux.server.state import SERVER, Server


async def list_adapters(request: web.Request) -> web.Response:
    """List all adapters that are loaded, and those that only end what they have begun, in load order."""
    return web.json_response({"object": "list", "data": adapter_rows(request.app[SERVER])})


def adapter_rows(server: Server) -> list[dict[str, object]]:
    """Describe every generation that is served, or that is replaced or unloaded but still in use."""
    residencies = server.engine.residencies()
    aliases: dict[str, list[str]] = {}
    for alias, target in server.registry.aliases.items().items():
        aliases.setdefault(target, []).append(alias)
    return [_row(use, residencies, aliases.get(use.served.name, ())) for use in server.registry.uses()]


def _row(use: GenerationUse, residencies: Mapping[int, Residency], aliases: Sequence[str]) -> dict[str, object]:
    served = use.served
    residency = residencies.get(served.id)
    return {
        "lora_name": served.name,
        "lora_int_id": served.id,
        "generation": served.id,
        "current": use.is_current,
        "digest": served.digest,
        "tier": "disk" if residency is None else residency.tier,
        "pinned": residency is not None and residency.is_pinned,
        "source": served.resolver if served.origin == "resolver" else served.origin,
        "root": served.root,
        "revision": served.revision or None,
        "parent": served.parent,
        "rank": served.loaded.max_rank,
        "bytes": served.loaded.nbytes,
        "hits": use.num_hits,
        "active": use.num_active,
        "created": served.created,
        "last_used": use.last_used,
        "aliases": [*aliases] if use.is_current else [],
    }
