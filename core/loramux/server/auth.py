"""Who may ask for what: API keys, compared as digests and in constant time, and what each route needs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.errors import Refused
from loramux.server.principal import ANONYMOUS, Principal
from loramux.server.routes import ROUTES

_PRINCIPAL = web.RequestKey("principal", Principal)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One accepted key, of which only the sha256 is kept, and whom it stands for."""

    digest: bytes
    principal: Principal

    @classmethod
    def of(cls, key: str) -> ApiKey:
        """Make a key that may do everything; it is named by its digest."""
        digest = _digest(key)
        return cls(digest, Principal(f"key-{digest.hex()[:12]}"))


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The accepted keys; neither a log nor a repr can show one. Without any, everybody is let in."""

    keys: tuple[ApiKey, ...] = ()

    @classmethod
    def from_keys(cls, keys: Sequence[str]) -> ApiKeys:
        """Accept these keys for everything."""
        return cls(tuple(ApiKey.of(key) for key in keys))

    @property
    def is_required(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self.keys)

    def find(self, key: str) -> Principal | None:
        """Say whose key this is; takes the same time for each of them and for none."""
        offered = _digest(key)
        found = None
        for known in self.keys:
            if hmac.compare_digest(offered, known.digest):
                found = known.principal
        return found


def principal_of(request: web.Request) -> Principal:
    """Who asks; for the handlers of all routes that are not public."""
    return request[_PRINCIPAL]


def check_access(keys: ApiKeys) -> Middleware:
    """Build the middleware that finds out who asks, and lets nobody past what their key is for."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        needs = request.app[ROUTES].access_to(request.match_info.route)
        if needs != "public":
            principal = _identify(request.headers.get("Authorization"), keys) if keys.is_required else ANONYMOUS
            if needs != "any key" and needs not in principal.scopes:
                raise Refused("insufficient_permissions", f"This API key does not have the scope '{needs}'.")
            request[_PRINCIPAL] = principal
        return await handler(request)

    return check


def _identify(header: str | None, keys: ApiKeys) -> Principal:
    scheme, _, key = (header or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Refused("missing_api_key", "You didn't provide an API key.")
    principal = keys.find(key)
    if principal is None:
        raise Refused("invalid_api_key", "Incorrect API key provided.")
    return principal


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
