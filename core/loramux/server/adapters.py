"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, where the operator has allowed them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from loramux.errors import AdapterInvalid, AdapterNotFound, RequestInvalid
from loramux.server.body import read_body
from loramux.server.errors import Refused, shown, without_paths
from loramux.server.protocol import LoadAdapterRequest, UnloadAdapterRequest
from loramux.server.state import SERVER


async def load_adapter(request: web.Request) -> web.Response:
    """Load an adapter from a folder of this machine under a name of its own."""
    server = request.app[SERVER]
    body = await read_body(request, LoadAdapterRequest)
    if not body.lora_name or not body.lora_path:
        raise RequestInvalid(
            "Both 'lora_name' and 'lora_path' must be provided.",
            param="lora_path" if body.lora_name else "lora_name",
            code="missing_required_parameter",
        )
    if not await asyncio.to_thread(_may_load, body.lora_path, server.allowed_lora_roots):
        raise _no_adapter()
    try:
        async with server.in_flight.admit():
            await server.registry.add(
                body.lora_name, body.lora_path, base_model_name=body.base_model_name, origin="api"
            )
    except AdapterNotFound as exc:
        raise _no_adapter() from exc
    except AdapterInvalid as exc:
        message = f"Adapter `{shown(exc.name)}` cannot be served: {without_paths(exc.reason)}"
        raise Refused(exc.code, message, param="lora_path") from exc
    return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(request: web.Request) -> web.Response:
    """Forget an adapter by name or by id; requests that use it keep it to their end."""
    server = request.app[SERVER]
    body = await read_body(request, UnloadAdapterRequest)
    if not body.lora_name and body.lora_int_id is None:
        raise RequestInvalid(
            "'lora_name' or 'lora_int_id' needs to be provided to unload a LoRA adapter.",
            param="lora_name",
            code="missing_required_parameter",
        )
    try:
        removed = await server.registry.remove(name=body.lora_name or None, lora_int_id=body.lora_int_id)
    except AdapterNotFound as exc:
        asked_for = shown(body.lora_name or str(body.lora_int_id))
        message = f"The lora adapter '{asked_for}' cannot be found."
        raise Refused("adapter_not_found", message, param="lora_name" if body.lora_name else "lora_int_id") from exc
    return web.Response(text=f"Success: LoRA adapter '{removed.lora_request.lora_name}' removed successfully.")


def _may_load(path: str, allowed_roots: tuple[Path, ...] | None) -> bool:
    """Whether the folder looks like an adapter and lies where adapters may lie; both answers are the same outside."""
    try:
        folder = Path(path).expanduser().resolve()
        if allowed_roots is not None and not any(folder.is_relative_to(root.resolve()) for root in allowed_roots):
            return False
        return (folder / "adapter_config.json").is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links, an unknown home
        return False


def _no_adapter() -> Refused:
    return Refused("adapter_not_found", "No adapter found at the given path.", param="lora_path")
