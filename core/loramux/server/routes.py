"""Routes: every address together with who may ask for it; one that does not say so cannot be built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel

from loramux.server.access.principal import Scope

Access = Scope | Literal["public", "any key"]
"""Who may ask: everybody, whoever has a key, or whoever's key has this scope."""

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"
HTML = "text/html"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one address; `body`, `query` and `answers` (media types) are what /openapi.json says of it.

    `is_page` is set for what people open in a browser, which sends a key as the password of basic authentication.
    """

    method: str
    path: str
    handler: Handler
    needs: Access
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    answers: tuple[str, ...] = (JSON,)
    is_page: bool = False


class Routes:
    """Adds routes to a router and remembers what each of them needs."""

    def __init__(self, router: web.UrlDispatcher) -> None:
        self._router = router
        self._routes: dict[web.AbstractRoute, Route] = {}

    def get(
        self,
        path: str,
        handler: Handler,
        *,
        needs: Access,
        query: tuple[str, ...] = (),
        answers: tuple[str, ...] = (JSON,),
        is_page: bool = False,
    ) -> None:
        """Answer GET and HEAD."""
        resource = self._router.add_resource(path)
        for method in ("GET", "HEAD"):
            route = Route(method, resource.canonical, handler, needs, query=query, answers=answers, is_page=is_page)
            self._routes[resource.add_route(method, handler)] = route

    def post(
        self,
        path: str,
        handler: Handler,
        *,
        needs: Access,
        body: type[BaseModel],
        answers: tuple[str, ...] = (JSON,),
    ) -> None:
        """Answer POST with a body that the handler reads by `read_body`."""
        resource = self._router.add_resource(path)
        route = Route("POST", resource.canonical, handler, needs, body=body, answers=answers)
        self._routes[resource.add_route("POST", handler)] = route

    def access_to(self, route: web.AbstractRoute) -> Access:
        """Say what a route needs; whoever asks for an unknown address needs a key, too."""
        return self._routes[route].needs if route in self._routes else "any key"

    def is_page(self, route: web.AbstractRoute) -> bool:
        """Whether a browser may send its key as a password."""
        return route in self._routes and self._routes[route].is_page

    def check(self) -> None:
        """Raise RuntimeError if a route was added past this class, without saying who may use it."""
        for route in self._router.routes():
            if route not in self._routes:
                raise RuntimeError(f"{route!r} does not say who may use it: add it through Routes")

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())


ROUTES = web.AppKey("routes", Routes)
