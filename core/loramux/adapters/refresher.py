"""Refresher: asks the sources of served adapters again behind the scenes, and lets newer generations take over.

Whatever goes wrong, the present generation stays: only a source that says that the adapter is gone ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from loramux.adapters.generation_loader import GenerationLoader
from loramux.adapters.generations import Generations
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterNotFound, LoramuxError

logger = logging.getLogger(__name__)

MAX_REFRESHES = 16
RETRY_SECONDS = 60.0


class Refresher:
    """At most one refresh per name at a time. For one event loop."""

    def __init__(
        self,
        loader: GenerationLoader,
        generations: Generations,
        *,
        limit_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._loader = loader
        self._generations = generations
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def due_after(self, seconds: float | None) -> float | None:
        """Return when to ask again what may be used for so long; None = never."""
        return None if seconds is None else self._clock() + seconds

    def refresh_if_due(self, served: ServedAdapter) -> None:
        """Begin to ask the source of a current generation again, if it is time; nobody waits for it."""
        if served.name in self._tasks or len(self._tasks) >= MAX_REFRESHES:
            return
        if self._generations.is_due(served, self._clock()):
            task = asyncio.create_task(self._refresh(served), name=f"refresh {served.name}")
            self._tasks[served.name] = task
            task.add_done_callback(lambda _: self._tasks.pop(served.name))

    async def close(self) -> None:
        """Cancel what is under way, and wait for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self, served: ServedAdapter) -> None:
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self.look_for_successor(served)
        except AdapterNotFound:
            return  # it is not served any more
        except (LoramuxError, TimeoutError) as exc:
            logger.warning("adapter stays, it cannot be refreshed adapter=%s id=%d: %s", served.name, served.id, exc)
            self._generations.keep(served, served, check_at=self.due_after(RETRY_SECONDS))
        except Exception:
            logger.exception("refresh failed adapter=%s", served.name)

    async def look_for_successor(self, served: ServedAdapter) -> None:
        """Ask the source of a current generation now; raises what finding and loading raise.

        AdapterNotFound, that its source has given it up, ends it.
        """
        try:
            found, trace = await self._loader.find(served.name, is_refresh=True)
        except AdapterNotFound:
            if self._generations.is_current(served):
                logger.info("adapter is gone at its source adapter=%s id=%d", served.name, served.id)
                self._generations.retire(served)
            raise
        check_at = self.due_after(found.revalidate_seconds)
        if found.revision and (found.revision, found.root) == (served.revision, served.root):
            found.release()
            self._generations.keep(served, served, check_at=check_at)
            return
        successor = await self._loader.load_found(found, trace)
        if successor.digest == served.digest or not self._generations.is_current(served):
            self._generations.unload(successor)  # the same content, or somebody else was faster
            updated = replace(served, revision=found.revision, root=found.root, defaults=found.defaults)
            self._generations.keep(served, updated, check_at=check_at)
            return
        logger.info("adapter has a new generation adapter=%s id=%d -> %d", served.name, served.id, successor.id)
        self._generations.install(successor, check_at=check_at)
        self._loader.tell("loaded", successor.lora_request, seconds=successor.load_seconds)
