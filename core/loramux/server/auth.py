"""Who may ask for what: API keys, compared as digests and in constant time, and what each route needs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.errors import Refused
from loramux.server.exchange import note_principal
from loramux.server.principal import ANONYMOUS, Principal
from loramux.server.routes import ROUTES

_PRINCIPAL = web.RequestKey("principal", Principal)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One accepted key, of which only the sha256 is kept, and whom it stands for."""

    digest: bytes = field(repr=False)
    principal: Principal

    @classmethod
    def of(cls, key: str) -> ApiKey:
        """Make a key that may do everything; it is named by its digest."""
        digest = _digest(key)
        return cls(digest, Principal(f"key-{digest.hex()[:12]}"))


class ApiKeys:
    """The accepted keys; neither a log nor a repr can show one. For one event loop.

    `fixed` ones stay; those of the keys file are replaced when it changes. Where there is neither, everybody is let in.
    """

    def __init__(self, fixed: Sequence[ApiKey] = (), of_file: Sequence[ApiKey] | None = None) -> None:
        self._fixed = tuple(fixed)
        self._keys = (*self._fixed, *(of_file or ()))
        self.are_required = bool(fixed) or of_file is not None

    @classmethod
    def from_keys(cls, keys: Sequence[str], of_file: Sequence[ApiKey] | None = None) -> ApiKeys:
        """Accept these keys for everything, and those of a file for what it says."""
        return cls([ApiKey.of(key) for key in keys], of_file)

    def replace(self, of_file: Sequence[ApiKey]) -> None:
        """Accept other keys of the keys file from now on."""
        self._keys = (*self._fixed, *of_file)

    def find(self, key: str) -> Principal | None:
        """Say whose key this is; takes the same time for each of them and for none."""
        offered = _digest(key)
        found = None
        for known in self._keys:
            if hmac.compare_digest(offered, known.digest):
                found = known.principal
        return found


def find_principal(request: web.Request) -> Principal | None:
    """Who asks; None for a public route, which does not look."""
    return request.get(_PRINCIPAL)


def principal_of(request: web.Request) -> Principal:
    """Who asks; for the handlers of all routes that are not public."""
    return request[_PRINCIPAL]


def check_access(keys: ApiKeys) -> Middleware:
    """Build the middleware that finds out who asks, and lets nobody past what their key is for."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        needs = request.app[ROUTES].access_to(request.match_info.route)
        if needs != "public":
            principal = _identify(request.headers.get("Authorization"), keys) if keys.are_required else ANONYMOUS
            if needs != "any key" and needs not in principal.scopes:
                raise Refused("insufficient_permissions", f"This API key does not have the scope '{needs}'.")
            request[_PRINCIPAL] = principal
            note_principal(principal.id)
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
