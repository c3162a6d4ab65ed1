"""GET /v1/models and /v1/models/{id}: what is served, with its lineage; and which of it a request means."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterNotFound
from loramux.lora.request import LoRARequest
from loramux.server.auth import principal_of
from loramux.server.state import SERVER, Server

OWNER = "loramux"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model a request asks for; `lora_request` is None for the base model."""

    name: str
    lora_request: LoRARequest | None


@asynccontextmanager
async def choose_model(server: Server, name: str | None, principal: str | None) -> AsyncIterator[ModelChoice]:
    """Find the model by name, asking the resolvers when it is new, and keep it to the end; None means the base model.

    Raises AdapterNotFound, AdapterInvalid, AdapterLoading or ResolverFailed.
    """
    if name is None:
        yield ModelChoice(server.base_model_names[0], None)
        return
    async with server.registry.use(name, principal) as served:
        yield ModelChoice(name, None if served is None else served.lora_request)


async def list_models(request: web.Request) -> web.Response:
    """Answer GET /v1/models: the base model's names first, then the adapters in the order they were loaded."""
    return web.json_response({"object": "list", "data": list(_cards(request).values())})


async def get_model(request: web.Request) -> web.Response:
    """Answer GET /v1/models/{id}; an adapter that was not loaded yet is unknown here."""
    name = request.match_info["model"]
    card = _cards(request).get(name)
    if card is None:
        raise AdapterNotFound(name)
    return web.json_response(card)


def _cards(request: web.Request) -> dict[str, dict[str, object]]:
    server = request.app[SERVER]
    usable = server.registry.adapters_for(principal_of(request))
    bases = {name: _base_card(server, name) for name in server.base_model_names}
    adapters = {adapter.name: _adapter_card(adapter) for adapter in usable}
    aliases = {
        alias: {**{**bases, **adapters}[target], "id": alias, "parent": target}
        for alias, target in server.registry.aliases_for(principal_of(request)).items()
        if target in bases or target in adapters
    }
    return {**bases, **adapters, **aliases}


def _base_card(server: Server, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": OWNER,
        "root": server.model_root,
        "parent": None,
        "max_model_len": server.max_model_len,
        "permission": [_permission(server.created)],
    }


def _adapter_card(adapter: ServedAdapter) -> dict[str, object]:
    return {
        "id": adapter.lora_request.lora_name,
        "object": "model",
        "created": adapter.created,
        "owned_by": OWNER,
        "root": adapter.root,
        "parent": adapter.parent,
        "max_model_len": None,
        "permission": [_permission(adapter.created)],
        "lora_int_id": adapter.lora_request.lora_int_id,
    }


def _permission(created: int) -> dict[str, object]:
    return {
        "id": f"modelperm-{uuid.uuid4().hex}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
