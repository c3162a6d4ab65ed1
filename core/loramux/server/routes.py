"""Routes: every address together with who may ask for it; one that does not say so cannot be built."""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from loramux.server.errors import Refused, describe
from loramux.server.principal import Scope
from loramux.server.request_id import request_id_of

Access = Scope | Literal["public", "any key"]
"""Who may ask: everybody, whoever has a key, or whoever's key has this scope."""


class Routes:
    """Adds routes to a router and remembers what each of them needs."""

    def __init__(self, router: web.UrlDispatcher) -> None:
        self._router = router
        self._access: dict[web.AbstractRoute, Access] = {}

    def get(self, path: str, handler: Handler, *, needs: Access) -> None:
        """Answer GET and HEAD."""
        resource = self._router.add_resource(path)
        for method in ("GET", "HEAD"):
            self._access[resource.add_route(method, handler)] = needs

    def post(self, path: str, handler: Handler, *, needs: Access) -> None:
        """Answer POST."""
        resource = self._router.add_resource(path)
        self._access[resource.add_route("POST", handler, expect_handler=_continue_or_refuse)] = needs

    def access_to(self, route: web.AbstractRoute) -> Access:
        """Say what a route needs; whoever asks for an unknown address needs a key, too."""
        return self._access.get(route, "any key")

    def check(self) -> None:
        """Raise RuntimeError if a route was added past this class, without saying who may use it."""
        for route in self._router.routes():
            if route not in self._access:
                raise RuntimeError(f"{route!r} does not say who may use it: add it through Routes")

    def items(self) -> list[tuple[str, str, Access]]:
        """Return method, address and need of every route."""
        return [
            (route.method, route.resource.canonical, access)
            for route, access in self._access.items()
            if route.resource is not None
        ]


ROUTES = web.AppKey("routes", Routes)


async def _continue_or_refuse(request: web.Request) -> web.StreamResponse | None:
    """Answer an `Expect` header before the body comes; aiohttp's own refusal is plain text."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None
    refused = Refused("unsupported_encoding", "The only accepted 'Expect' header is 100-continue.")
    return describe(refused, request_id=request_id_of(request)).response()
