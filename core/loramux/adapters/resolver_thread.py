"""ResolverThread: one event loop in one thread for one resolver, for as long as the server runs.

Clients of remote stores belong to the loop that first used them, so a resolver never changes its loop; and a resolver
that blocks its loop stalls only itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from loramux.adapters.retrying import NotAskedAgain

logger = logging.getLogger(__name__)

T = TypeVar("T")

TURN_TIMEOUT_SECONDS = 0.1
CLOSE_TIMEOUT_SECONDS = 0.5  # a loop that is not blocked ends at once


class ResolverThread:
    """Runs coroutines on its own loop; the thread starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._is_closed = False

    async def run(
        self, function: Callable[[], Coroutine[Any, Any, T]], loop: asyncio.AbstractEventLoop | None = None
    ) -> T:
        """Await `function()` on the thread's loop, or on a running one given; cancelling this cancels it there."""
        if self._is_closed:
            raise NotAskedAgain(f"resolver {self._name!r} is closed", retry_after_seconds=5)
        loop = loop or self._loop or self._start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(), loop))

    async def is_blocked(self) -> bool:
        """Whether something keeps the thread's loop from going on; takes a tenth of a second when it does."""
        if self._loop is None:
            return False
        turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        try:
            async with asyncio.timeout(TURN_TIMEOUT_SECONDS):
                await asyncio.wrap_future(turn)
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        """End the loop after cancelling what still runs on it; a thread that is blocked is left behind."""
        self._is_closed = True
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            logger.warning("resolver is still blocked and is left behind resolver=%s", self._name)

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()
        # A daemon: a resolver that hangs must not keep the process from ending.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name=f"resolver-{self._name}", daemon=True
        )
        self._thread.start()
        self._loop = started.result()
        return self._loop

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
