"""GET /v1/models and /v1/models/{id}: what is served, with its lineage."""

from __future__ import annotations

import uuid

from aiohttp import web

from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterNotFound
from loramux.server.access.auth import principal_of
from loramux.server.inference.model_choice import may_use
from loramux.server.state import SERVER, Server

OWNER = "loramux"

Json = dict[str, object]


async def list_models(request: web.Request) -> web.Response:
    """Answer GET /v1/models: the base model's names first, then the adapters in the order they were loaded."""
    return web.json_response({"object": "list", "data": list(_cards(request).values())})


async def get_model(request: web.Request) -> web.Response:
    """Answer GET /v1/models/{id}; an adapter that was not loaded yet is unknown here."""
    name = request.match_info["model"]
    card = _card(request, name)
    if card is None:
        raise AdapterNotFound(name)
    return web.json_response(card)


def _cards(request: web.Request) -> dict[str, Json]:
    server = request.app[SERVER]
    adapters = [adapter.name for adapter in server.registry.adapters()]
    names = [*server.base_model_names, *adapters, *server.registry.aliases.items()]
    return {name: card for name in names if (card := _card(request, name)) is not None}


def _card(request: web.Request, name: str) -> Json | None:
    """Describe one model; None for what is not served, or not for this caller. An alias is no way past the plugins."""
    server, principal = request.app[SERVER], principal_of(request)
    registry, target = server.registry, server.registry.aliases.target_of(name)
    asked_of_plugins = {name, target}.difference(server.base_model_names)
    if not may_use(server, principal, name) or not all(registry.allows(principal.id, one) for one in asked_of_plugins):
        return None
    shows_places = "admin" in principal.scopes
    if target in server.base_model_names:
        card = _base_card(server, target, shows_places=shows_places)
    elif (served := registry.current(target)) is not None:
        card = _adapter_card(served, shows_places=shows_places)
    else:
        return None
    return card if name == target else {**card, "id": name, "parent": target}


def _base_card(server: Server, name: str, *, shows_places: bool) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": OWNER,
        "root": server.model_root if shows_places else name,
        "parent": None,
        "max_model_len": server.max_model_len,
        "permission": [_permission(server.created)],
    }


def _adapter_card(adapter: ServedAdapter, *, shows_places: bool) -> Json:
    return {
        "id": adapter.lora_request.lora_name,
        "object": "model",
        "created": adapter.created,
        "owned_by": OWNER,
        "root": adapter.root if shows_places else adapter.digest,
        "parent": adapter.parent,
        "max_model_len": None,
        "permission": [_permission(adapter.created)],
        "lora_int_id": adapter.lora_request.lora_int_id,
    }


def _permission(created: int) -> Json:
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
