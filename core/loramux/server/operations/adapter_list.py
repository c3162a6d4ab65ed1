"""GET /v1/lora_adapters: every adapter that is served, where it rests now, where it came from and how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aiohttp import web

from loramux.adapters.generations import GenerationUse
from loramux.adapters.residency import shown_residency
from loramux.server.state import SERVER, Server


async def list_adapters(request: web.Request) -> web.Response:
    """List all adapters that are loaded, and those that only end what they have begun, in load order."""
    rows = AdapterRows(request.app[SERVER])
    return web.json_response({"object": "list", "data": [rows.row(use) for use in rows.uses]})


class AdapterRows:
    """All generations at one moment, with what is needed to describe each of them."""

    def __init__(self, server: Server) -> None:
        self.uses = server.registry.uses()
        self.residencies = server.engine.residencies()
        self._aliases: dict[str, list[str]] = {}
        for alias, target in server.registry.aliases.items().items():
            self._aliases.setdefault(target, []).append(alias)

    def tier_of(self, use: GenerationUse) -> Literal["slot", "host", "disk"]:
        """Say where a generation rests."""
        residency = self.residencies.get(use.served.id)
        return "disk" if residency is None else residency.tier

    def aliases_of(self, use: GenerationUse) -> Sequence[str]:
        """Return the names that stand for it; none stands for one that has been replaced."""
        return self._aliases.get(use.served.name, ()) if use.is_current else ()

    def row(self, use: GenerationUse) -> dict[str, object]:
        """Describe one generation."""
        served = use.served
        return {
            "lora_name": served.name,
            "lora_int_id": served.id,
            "generation": served.id,
            "current": use.is_current,
            "digest": served.digest,
            **shown_residency(self.residencies.get(served.id)),
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
            "aliases": list(self.aliases_of(use)),
        }
