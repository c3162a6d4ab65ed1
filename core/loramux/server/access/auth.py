"""Who may ask for what: API keys, compared as digests and in constant time, and what each route needs."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.access.principal import ANONYMOUS, Principal
from loramux.server.errors import Refused
from loramux.server.observing.exchange import note_principal
from loramux.server.routes import ROUTES

_ASK_FOR_PASSWORD = {"WWW-Authenticate": 'Basic realm="loramux: an API key as the password", charset="UTF-8"'}
"""What makes a browser ask, since it cannot send a bearer key by itself."""

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
        routes, route = request.app[ROUTES], request.match_info.route
        needs = routes.access_to(route)
        if needs != "public":
            principal = _identify(request, keys, is_page=routes.is_page(route)) if keys.are_required else ANONYMOUS
            note_principal(principal.id)
            if needs != "any key" and needs not in principal.scopes:
                raise Refused("insufficient_permissions", f"This API key does not have the scope '{needs}'.")
            request[_PRINCIPAL] = principal
        return await handler(request)

    return check


def is_still_admin(request: web.Request, keys: ApiKeys) -> bool:
    """Whether the key of a request that goes on for long is still an operator's: the keys file may have changed."""
    try:
        return not keys.are_required or "admin" in _identify(request, keys, is_page=True).scopes
    except Refused:
        return False


def _identify(request: web.Request, keys: ApiKeys, *, is_page: bool) -> Principal:
    headers = _ASK_FOR_PASSWORD if is_page else {}
    key = _offered_key(request.headers.get("Authorization", ""), is_page=is_page)
    if not key:
        raise Refused("missing_api_key", "You didn't provide an API key.", headers=headers)
    principal = keys.find(key)
    if principal is None:
        raise Refused("invalid_api_key", "Incorrect API key provided.", headers=headers)
    return principal


def _offered_key(header: str, *, is_page: bool) -> str:
    scheme, _, credentials = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip()
        case "basic" if is_page:
            with suppress(ValueError):  # no base64, or no UTF-8 in it
                return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
