"""Lease: a request's hold on one adapter in host memory, and what becomes of one that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from loramux.adapters.packed import PackedAdapter
from loramux.errors import LoramuxError


class Lease:
    """A request's hold on one adapter: it stays in host memory until `release`, which is idempotent."""

    def __init__(self, adapter: PackedAdapter, release: Callable[[], None]) -> None:
        self.adapter = adapter
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let go; calling it again does nothing."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()


def give_up(future: Future[Lease]) -> None:
    """Stop waiting for a lease: it is never handed out, or let go of as soon as it is."""
    if not future.cancel():
        future.add_done_callback(_release_result)


def _release_result(future: Future[Lease]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()


def fail(future: Future[Lease], error: LoramuxError) -> None:
    """Tell whoever waits for a lease why there is none."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
