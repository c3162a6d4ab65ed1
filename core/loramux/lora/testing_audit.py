"""What a plugin's code does behind its answers: paths touched, and calls that block; for ResolverContract."""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class BlockingCalls:
    """What one thread did that may block it."""

    thread_id: int
    calls: list[str] = field(default_factory=list)


_TOUCHING = frozenset(
    {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.chmod"}
)
_recorders: list[list[str]] = []
_watches: list[BlockingCalls] = []
_CODE = (".py", ".pyc", ".so")  # imports at first use are the interpreter's business


@contextmanager
def touched_paths() -> Iterator[list[str]]:
    """Record every path that any thread opens, lists or changes, with symlinks followed."""
    _install_audit_hook()
    touched: list[str] = []
    _recorders.append(touched)
    try:
        yield touched
    finally:
        _recorders.remove(touched)
    touched[:] = [os.path.realpath(path) for path in touched]


@contextmanager
def blocking_calls() -> Iterator[BlockingCalls]:
    """Record what this thread, which runs the loop, does that may block it."""
    _install_audit_hook()
    watch = BlockingCalls(threading.get_ident())
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)


@functools.cache
def _install_audit_hook() -> None:
    sys.addaudithook(_record)  # it cannot be removed again, so there is one, which is idle between the tests


def _record(event: str, arguments: tuple[object, ...]) -> None:
    for watch in _watches:
        if watch.thread_id == threading.get_ident() and _may_block(event, arguments):
            watch.calls.append(f"{event} {arguments[0]!r}")
    if _recorders and event in _TOUCHING and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        if "\0" not in path and path.isprintable():  # what cannot be a path is not touched either
            for touched in _recorders:
                touched.append(path)


def _may_block(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "socket.connect":
        return isinstance(arguments[0], socket.socket) and arguments[0].gettimeout() != 0
    if event in ("time.sleep", "subprocess.Popen", "os.system"):
        return True
    path = arguments[0] if arguments else None
    return event in _TOUCHING and isinstance(path, str | os.PathLike) and not os.fsdecode(path).endswith(_CODE)
