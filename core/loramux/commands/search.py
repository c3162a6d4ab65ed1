"""Search: one name through the resolvers without a server, and a look at what they found.

Nothing is left behind: what a remote resolver fetches goes into a store of its own that is removed again, so that a
search disturbs no server and no store.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.inspection import Inspection
from loramux.adapters.materializer import Materializer
from loramux.adapters.resolution import Found, Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound, LoramuxError
from loramux.lora.plugin_manager import ActiveResolver, PluginConfig, PluginManager

NOT_FOUND_STATUS = 3
"""Exit status of a name that nobody knows; 1 is for whatever is broken or out of order."""

Inspect = Callable[[str, Path, Path | None], Inspection]
"""Look into a folder: the adapter's name, the folder, and the root that it must be opened from."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What came of a search; exactly one of `found` and `error` is set."""

    trace: Trace
    found: Found | None = None
    inspection: Inspection | None = None
    error: LoramuxError | None = None

    @property
    def exit_status(self) -> int:
        """0 = found and sound, 3 = nobody knows the name, 1 = anything else."""
        if isinstance(self.error, AdapterNotFound):
            return NOT_FOUND_STATUS
        is_sound = self.inspection is not None and self.inspection.is_valid
        return 0 if self.error is None and is_sound else 1


def search(name: str, *, base_model_name: str, plugins: PluginConfig, inspect: Inspect) -> SearchResult:
    """Ask the configured resolvers for a name; raises ConfigInvalid when they cannot be had."""
    manager = PluginManager.start(plugins)
    try:
        with tempfile.TemporaryDirectory(prefix="loramux-search-") as folder, DiskStore.open(folder) as store:
            return asyncio.run(_search(name, base_model_name, manager.resolvers, store, inspect))
    finally:
        manager.close()


async def _search(
    name: str, base_model_name: str, resolvers: tuple[ActiveResolver, ...], store: DiskStore, inspect: Inspect
) -> SearchResult:
    chain = ResolverChain(resolvers, Materializer(store))
    trace = Trace(name)
    try:
        found = await chain.resolve(base_model_name, name, trace)
        request = found.lora_request
        root = None if request.allowed_root is None else Path(request.allowed_root)
        try:
            inspection = await asyncio.to_thread(inspect, name, Path(request.lora_path), root)
        finally:
            found.release()
        return SearchResult(trace, found=found, inspection=inspection)
    except LoramuxError as exc:
        return SearchResult(trace, error=exc)
    finally:
        await chain.close()
