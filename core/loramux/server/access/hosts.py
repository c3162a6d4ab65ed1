"""Which names of the server a request may use: a browser that was led to a local address by DNS uses another one."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.errors import Refused
from loramux.server.routes import ROUTES


def check_host(allowed: Collection[str] | None) -> Middleware:
    """Build the middleware that lets in who asks for a loopback name or one of `allowed`; None lets in everybody.

    A switch to another protocol is refused here, too: it would end the reading of requests on its connection.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() in ("websocket", "tcp"):
            raise Refused("upgrade_refused", "This server speaks HTTP/1.1 alone.")
        is_public = request.app[ROUTES].access_to(request.match_info.route) == "public"  # probes ask by address
        if allowed is not None and not is_public and not is_meant(request.headers.get("Host", ""), allowed):
            raise Refused("host_not_allowed", "This server does not go by the name in the Host header.")
        return await handler(request)

    return check


def is_meant(host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header, with or without a port, names this machine itself or one of the allowed hosts."""
    name = _without_port(host.strip().lower()).removesuffix(".")
    return name in allowed or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine can use this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
