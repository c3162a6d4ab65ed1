"""Limits per key: requests a minute, new adapters a minute, and requests at once; who is over one waits.

Buckets hold at most a minute's worth, so a key that was idle may send that much at once. A library would bring a store
of its own for forty lines of arithmetic, and its own idea of a clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from loramux.server.access.auth import find_principal
from loramux.server.access.principal import KeyLimits, Principal
from loramux.server.errors import LONGEST_RETRY_SECONDS, Refused

Clock = Callable[[], float]

RATE_HEADERS = web.RequestKey("rate_headers", dict[str, str])
"""What the response says of the caller's limit; set where there is one."""


class TokenBucket:
    """Gives out `per_minute` tokens a minute."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._tokens = float(per_minute)
        self._filled_at = clock()

    @property
    def num_left(self) -> float:
        """How many tokens it holds now."""
        now = self._clock()
        self._tokens = min(self.per_minute, self._tokens + (now - self._filled_at) * self.per_minute / 60)
        self._filled_at = now
        return self._tokens

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self.num_left < 1:
            return False
        self._tokens -= 1
        return True

    def seconds_until(self, num_tokens: int) -> int:
        """How long it takes until it holds so many, in whole seconds."""
        return math.ceil(max(0.0, num_tokens - self.num_left) * 60 / self.per_minute)


@dataclass(slots=True)
class _Usage:
    """What one key has used of its limits."""

    limits: KeyLimits
    requests: TokenBucket | None = None
    new_adapters: TokenBucket | None = None
    num_running: int = 0


class Limiter:
    """Counts what each key does; for one event loop. What it keeps is one small record for each key with limits."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._usages: dict[str, _Usage] = {}

    @contextmanager
    def admit(self, principal: Principal) -> Iterator[dict[str, str]]:
        """Count one request from here to its end and give its headers; raises Refused for one too many."""
        usage = self._usage_of(principal)
        if usage is None:
            yield {}
            return
        most = usage.limits.max_concurrent
        if most is not None and usage.num_running >= most:
            message = f"Rate limit reached for requests at once: limit {most}."
            told = {} if usage.requests is None else _headers(usage.requests)
            raise Refused("rate_limit_exceeded", message, headers={**told, "Retry-After": "1"})
        if usage.requests is not None and not usage.requests.take():
            message = f"Rate limit reached for requests: limit {usage.requests.per_minute}/minute."
            headers = {**_headers(usage.requests), **_retry_after(usage.requests)}
            raise Refused("rate_limit_exceeded", message, headers=headers)
        usage.num_running += 1
        try:
            yield {} if usage.requests is None else _headers(usage.requests)
        finally:
            usage.num_running -= 1

    def count_new_adapter(self, principal: Principal) -> None:
        """Count a name that is to be looked for; raises Refused for one too many."""
        usage = self._usage_of(principal)
        if usage is None or usage.new_adapters is None or usage.new_adapters.take():
            return
        raise Refused(
            "adapter_resolution_rate_limited",
            "Too many unknown or new adapters requested.",
            param="model",
            headers=_retry_after(usage.new_adapters),
        )

    def _usage_of(self, principal: Principal) -> _Usage | None:
        limits, name = principal.limits, principal.id
        if name is None:
            return None
        usage = self._usages.get(name)
        if usage is None and limits == KeyLimits():
            return None
        if usage is None:
            usage = self._usages[name] = _Usage(KeyLimits())
        if usage.limits != limits:  # the keys file has changed; what runs goes on to count
            usage.limits = limits
            usage.requests = self._bucket(limits.requests_per_minute)
            usage.new_adapters = self._bucket(limits.new_adapters_per_minute)
        return usage

    def _bucket(self, per_minute: int | None) -> TokenBucket | None:
        return None if per_minute is None else TokenBucket(per_minute, self._clock)


def limit_requests(limiter: Limiter) -> Middleware:
    """Build the middleware that counts every request that needs a key, whatever becomes of it."""

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        principal = find_principal(request)
        if principal is None:
            return await handler(request)
        with limiter.admit(principal) as headers:
            request[RATE_HEADERS] = headers
            return await handler(request)

    return limit


def _headers(bucket: TokenBucket) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(bucket.per_minute),
        "x-ratelimit-remaining-requests": str(int(bucket.num_left)),
        "x-ratelimit-reset-requests": f"{bucket.seconds_until(bucket.per_minute)}s",
    }


def _retry_after(bucket: TokenBucket) -> dict[str, str]:
    return {"Retry-After": str(min(max(bucket.seconds_until(1), 1), LONGEST_RETRY_SECONDS))}
