"""The one place where a question to a source is asked again: what is worth it, how often, and after how long."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from loramux.errors import ResolverFailed, SourceChanged

T = TypeVar("T")

MAX_RETRIES = 2
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0


class NotAskedAgain(ResolverFailed):
    """A failure of which nobody knows whether it heals soon: clients may try again, the core does not."""


async def with_retries(question: Callable[[], Awaitable[T]]) -> T:
    """Ask, and up to twice more where that may heal, after random delays of up to twice the length each.

    What the source says itself about when to come back is honoured; more than five seconds is left to the client.
    """
    attempts = AsyncRetrying(
        stop=stop_after_attempt(1 + MAX_RETRIES), wait=_delay_seconds, retry=retry_if_exception(_may_heal), reraise=True
    )
    async for attempt in attempts:
        with attempt:
            return await question()
    raise AssertionError("the last attempt raises")


def _may_heal(error: BaseException) -> bool:
    if isinstance(error, NotAskedAgain | SourceChanged) or not isinstance(error, ResolverFailed):
        return False
    return error.retryable and (error.retry_after_seconds or 0.0) <= LONGEST_DELAY_SECONDS


def _delay_seconds(state: RetryCallState) -> float:
    assert state.outcome is not None
    error = state.outcome.exception()
    if isinstance(error, ResolverFailed) and error.retry_after_seconds:
        return error.retry_after_seconds
    longest = min(FIRST_DELAY_SECONDS * 2.0**state.attempt_number, LONGEST_DELAY_SECONDS)
    return random.uniform(0.0, longest)
