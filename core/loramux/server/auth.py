"""Who may ask: API keys, compared as digests and in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.errors import Refused

PUBLIC_PATHS = frozenset({"/health", "/version"})
"""What answers without a key; everything else, unknown addresses too, needs one."""

_PRINCIPAL = web.RequestKey("principal", str)


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The accepted keys; only their digests are kept, so neither a log nor a repr can show one."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def from_keys(cls, keys: Sequence[str]) -> ApiKeys:
        """Digest the keys."""
        return cls(tuple(_digest(key) for key in keys))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def accept(self, key: str) -> bool:
        """Whether this is one of the keys; takes the same time for each of them and for none."""
        offered = _digest(key)
        matches = [hmac.compare_digest(offered, digest) for digest in self.digests]
        return any(matches)


def principal_of(request: web.Request) -> str | None:
    """Who asks, for hooks and logs: a name made from the key's digest; None where no key is needed."""
    return request.get(_PRINCIPAL)


def require_api_key(keys: ApiKeys) -> Middleware:
    """Build the middleware that lets nobody in without one of these keys."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in PUBLIC_PATHS:
            key = _accepted_key(request.headers.get("Authorization"), keys)
            request[_PRINCIPAL] = f"key-{_digest(key).hex()[:12]}"
        return await handler(request)

    return check


def _accepted_key(header: str | None, keys: ApiKeys) -> str:
    scheme, _, key = (header or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Refused("missing_api_key", "You didn't provide an API key.")
    if not keys.accept(key):
        raise Refused("invalid_api_key", "Incorrect API key provided.")
    return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
