"""What operators do with adapters while the server runs, where they have allowed it: load, unload, pin, alias."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import web

from loramux.adapters.residency import shown_residency
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, RequestInvalid
from loramux.server.body import read_body
from loramux.server.errors import Refused, shown, without_paths
from loramux.server.operations.adapter_protocol import LoadAdapterRequest, MoveAliasRequest, WhichAdapterRequest
from loramux.server.state import SERVER, Server


async def load_adapter(request: web.Request) -> web.Response:
    """Load an adapter from a folder of this machine under a name of its own, or, without a folder, by the resolvers."""
    server = request.app[SERVER]
    body = await read_body(request, LoadAdapterRequest)
    if not body.lora_name or body.lora_path == "":
        raise RequestInvalid(
            "'lora_name' must be provided, and 'lora_path' must not be empty; without it the resolvers are asked.",
            param="lora_path" if body.lora_name else "lora_name",
            code="missing_required_parameter",
        )
    if body.lora_path is not None and not await asyncio.to_thread(_may_load, body.lora_path, server.allowed_lora_roots):
        raise _no_adapter()
    try:
        async with server.in_flight.admit():
            await _load(server, body.lora_name, body)
    except AdapterNotFound as exc:
        if body.lora_path is None:
            message = f"No resolver knows an adapter '{shown(body.lora_name)}'."
            raise Refused("adapter_not_found", message, param="lora_name") from exc
        raise _no_adapter() from exc
    except AdapterInvalid as exc:
        message = f"Adapter `{shown(exc.name)}` cannot be served: {without_paths(exc.reason)}"
        raise Refused(exc.code, message, param="lora_name" if body.lora_path is None else "lora_path") from exc
    return web.Response(text=f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def _load(server: Server, name: str, body: LoadAdapterRequest) -> None:
    replaces = bool(body.load_inplace)
    if body.lora_path is None:
        await server.registry.load(name, replaces=replaces)
        return
    await server.registry.add(
        name, body.lora_path, base_model_name=body.base_model_name, origin="api", replaces=replaces
    )


async def unload_adapter(request: web.Request) -> web.Response:
    """Forget an adapter by name or by id; requests that use it keep it to their end."""
    which = await _read_which(request, to="unload")
    with which.must_exist():
        removed = await request.app[SERVER].registry.remove(which.name, which.lora_int_id)
    return web.Response(text=f"Success: LoRA adapter '{removed.name}' removed successfully.")


async def pin_adapter(request: web.Request) -> web.Response:
    """Keep an adapter in host memory, and in its slot from the moment that a request brings it there."""
    server = request.app[SERVER]
    which = await _read_which(request, to="pin")
    with which.must_exist():
        async with server.in_flight.admit():  # it may have to be read again
            pinned = await server.registry.pin(which.name, which.lora_int_id)
    return _residence(server, pinned)


async def unpin_adapter(request: web.Request) -> web.Response:
    """Let an adapter be evicted again when others need its place."""
    server = request.app[SERVER]
    which = await _read_which(request, to="unpin")
    with which.must_exist():
        unpinned = await server.registry.unpin(which.name, which.lora_int_id)
    return _residence(server, unpinned)


async def move_alias(request: web.Request) -> web.Response:
    """Let an alias stand for another adapter, or for none any more; the answer says what it stood for before."""
    server = request.app[SERVER]
    body = await read_body(request, MoveAliasRequest)
    expectation = {"expected": body.expected_target} if "expected_target" in body.model_fields_set else {}
    previous = server.registry.move_alias(body.alias, body.target, **expectation)
    return web.json_response({"alias": body.alias, "target": body.target, "previous_target": previous})


async def explain_adapter(request: web.Request) -> web.Response:
    """Tell what each resolver said of a name when it was last looked for; reasons may name places."""
    name = request.query.get("lora_name", "")
    if not name:
        raise RequestInvalid("'lora_name' must be provided.", param="lora_name", code="missing_required_parameter")
    trace = request.app[SERVER].registry.explain(name)
    if trace is None:
        message = f"Nothing is known of '{shown(name)}': it was not looked for lately."
        raise Refused("adapter_not_found", message, param="lora_name")
    return web.json_response({"lora_name": trace.name, "steps": [asdict(step) for step in trace.steps]})


@dataclass(frozen=True, slots=True)
class _Which:
    """The adapter that an operator means; `param` is the field that says so."""

    name: str | None
    lora_int_id: int | None
    param: str

    @contextmanager
    def must_exist(self) -> Iterator[None]:
        """Answer in the operator's own terms when there is no such adapter."""
        try:
            yield
        except AdapterNotFound as exc:
            asked_for = shown(self.name or str(self.lora_int_id))
            with_id = "" if self.name is None or self.lora_int_id is None else f" with the id {self.lora_int_id}"
            message = f"The lora adapter '{asked_for}'{with_id} cannot be found."
            raise Refused("adapter_not_found", message, param=self.param) from exc


async def _read_which(request: web.Request, *, to: str) -> _Which:
    body = await read_body(request, WhichAdapterRequest)
    name, lora_int_id = body.lora_name or None, body.lora_int_id
    if isinstance(body.id, str):
        name = name or body.id or None
    elif lora_int_id is None:
        lora_int_id = body.id
    if name is None and lora_int_id is None:
        raise RequestInvalid(
            f"'lora_name' or 'lora_int_id' needs to be provided to {to} a LoRA adapter.",
            param="lora_name",
            code="missing_required_parameter",
        )
    given = (("lora_name", body.lora_name), ("lora_int_id", body.lora_int_id), ("id", body.id))
    return _Which(name, lora_int_id, next(param for param, value in given if value not in (None, "")))


def _residence(server: Server, adapter: ServedAdapter) -> web.Response:
    where = shown_residency(server.engine.residency(adapter.id))
    return web.json_response({"lora_name": adapter.name, "lora_int_id": adapter.id, **where})


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
