"""Which event loop a resolver's fsspec client is bound to, so that the resolver can be run where its client lives.

A file system that was made for synchronous use keeps its connections on a loop of fsspec's own; its coroutines fail
when another loop awaits them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from loramux.lora.resolver import LoRAResolver


def client_loop(resolver: LoRAResolver) -> asyncio.AbstractEventLoop | None:
    """Return the loop of the first such file system among the resolver's attributes; None if it has none."""
    fsspec = sys.modules.get("fsspec.asyn")  # not imported here: who holds a file system has imported it
    if fsspec is None:
        return None
    for value in list(getattr(resolver, "__dict__", {}).values()):  # its own thread may set attributes meanwhile
        if isinstance(value, fsspec.AsyncFileSystem) and not value.asynchronous:
            return cast("asyncio.AbstractEventLoop", value.loop)
    return None
