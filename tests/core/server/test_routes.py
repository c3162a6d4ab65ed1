from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web

from loramux.server.app import build_app
from loramux.server.routes import ROUTES, Routes

PUBLIC = {"/health", "/health/live", "/health/ready"}


async def answer(_: web.Request) -> web.Response:
    return web.Response()


async def test_every_route_of_the_server_says_who_may_use_it(start) -> None:
    client = await start(allow_runtime_updates=True)
    app = build_app(client.server)

    needs = {route.path: route.needs for route in app[ROUTES]}

    routes = {(route.method, route.resource.canonical) for route in app.router.routes()}
    assert {(route.method, route.path) for route in app[ROUTES]} == routes
    assert {path for path, access in needs.items() if access == "public"} == PUBLIC
    assert {access for path, access in needs.items() if path.endswith(("_adapter", "_alias"))} == {"admin"}


DOCS = Path(__file__).parents[3] / "docs" / "security.md"
ROW = re.compile(r"\| `(/[^`]*)`(?: (\*))? \| ([A-Z, ]+) \| ([a-z ]+) \|")


async def test_the_documents_list_every_address_with_what_it_needs(start) -> None:
    told = {(path, method, needs) for path, _, methods, needs in documented() for method in methods.split(", ")}
    always = {(path, needs) for path, star, _, needs in documented() if not star}

    everything = build_app((await start(allow_runtime_updates=True)).server)
    by_default = build_app((await start()).server)

    assert told == {(route.path, route.method, route.needs) for route in everything[ROUTES]}
    assert always == {(route.path, route.needs) for route in by_default[ROUTES]}


def documented() -> list[tuple[str, str, str, str]]:
    return ROW.findall(DOCS.read_text())


def test_a_route_that_says_nothing_cannot_be_built() -> None:
    router = web.Application().router
    routes = Routes(router)
    routes.get("/known", answer, needs="infer")
    routes.check()

    router.add_get("/forgotten", answer)

    with pytest.raises(RuntimeError, match=r"/forgotten.* does not say who may use it"):
        routes.check()


def test_an_address_that_nobody_added_needs_a_key() -> None:
    app = web.Application()
    other = app.router.add_get("/other", answer)

    assert Routes(app.router).access_to(other) == "any key"
