"""GET /openapi.json: every route of this server with its body and the errors it may answer, made from the routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from loramux import __version__
from loramux.server.errors import ERROR_KINDS
from loramux.server.request_id import HEADER as REQUEST_ID_HEADER
from loramux.server.routes import JSON, Route, Routes

Json = dict[str, object]

DOCUMENT = web.AppKey("openapi", dict[str, object])

_ABOUT_KEYS = frozenset({401, 403})
_ABOUT_BODIES = frozenset({413, 415})
_API_KEY = "apiKey"


async def describe_api(request: web.Request) -> web.Response:
    """Describe the API of this server."""
    return web.json_response(request.app[DOCUMENT])


def document(routes: Routes, *, needs_key: bool) -> Json:
    """Build the OpenAPI 3.1 document; `needs_key` says whether the server asks for one."""
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, needs_key=needs_key)
    return {
        "openapi": "3.1.0",
        "info": {"title": "loramux", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": _schemas(route.body for route in routes if route.body is not None),
            "responses": {str(status): _error_response(status) for status in _statuses()},
            "securitySchemes": {_API_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, *, needs_key: bool) -> Json:
    operation: Json = {
        "operationId": f"{route.method} {route.path}",
        "summary": _first_sentence(route.handler),
        "security": _security(route, needs_key=needs_key),
        "parameters": _parameters(route),
        "responses": {"200": _success(route), **{str(status): _error(status) for status in _statuses_of(route)}},
    }
    if route.body is not None:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _first_sentence(handler: object) -> str:
    lines = (handler.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""


def _security(route: Route, *, needs_key: bool) -> list[Json]:
    """Which key opens the route; OpenAPI lists the scopes of a bearer key as its roles."""
    if route.needs == "public" or not needs_key:
        return []
    return [{_API_KEY: [] if route.needs == "any key" else [route.needs]}]


def _parameters(route: Route) -> list[Json]:
    in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    text = {"type": "string", "minLength": 1}
    return [
        *({"name": name, "in": "path", "required": True, "schema": text} for name in in_path),
        *({"name": name, "in": "query", "required": True, "schema": text} for name in route.query),
        {"name": REQUEST_ID_HEADER, "in": "header", "required": False, "schema": {"type": "string"}},
    ]


def _success(route: Route) -> Json:
    response: Json = {"description": "Success."}
    if route.answers and route.method != "HEAD":
        response["content"] = {
            media_type: {"schema": {"type": "object" if media_type == JSON else "string"}}
            for media_type in route.answers
        }
    return response


def _error(status: int) -> Json:
    return {"$ref": f"#/components/responses/{status}"}


def _statuses() -> list[int]:
    return sorted({kind.status for kind in ERROR_KINDS.values()})


def _statuses_of(route: Route) -> list[int]:
    left_out = (_ABOUT_KEYS if route.needs == "public" else frozenset()) | (
        _ABOUT_BODIES if route.body is None else frozenset()
    )
    return [status for status in _statuses() if status not in left_out]


def _error_response(status: int) -> Json:
    kinds = {code: kind for code, kind in ERROR_KINDS.items() if kind.status == status}
    error = {
        "type": "object",
        "additionalProperties": False,
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"enum": sorted({kind.type for kind in kinds.values()})},
            "param": {"type": ["string", "null"]},
            "code": {"enum": sorted(kinds)},
        },
    }
    body = {"type": "object", "additionalProperties": False, "required": ["error"], "properties": {"error": error}}
    return {"description": f"One of: {', '.join(sorted(kinds))}.", "content": {JSON: {"schema": body}}}


def _schemas(bodies: Iterable[type[BaseModel]]) -> Mapping[str, object]:
    _, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    schemas = definitions["$defs"]
    assert isinstance(schemas, Mapping)
    return schemas
