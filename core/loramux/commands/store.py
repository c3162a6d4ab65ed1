"""`loramux store`: what the store of fetched adapters holds, whether every byte of it is right, and cleaning it up.

Listing and verifying read only, and may be done beside a server that uses the store; cleaning needs the store alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.store_check import StoredEntry, entries, verify
from loramux.adapters.store_files import disk_faults
from loramux.adapters.store_layout import StoreLayout
from loramux.adapters.store_refs import NamedRef, named_refs
from loramux.commands.printing import add_row, console, print_json, size, table
from loramux.errors import ConfigInvalid
from loramux.server.startup.config import StoreConfig

_SHOWN_DIGITS = 12


def list_store(config: StoreConfig, *, as_json: bool) -> int:
    """Print every adapter, the one used last first, with the names that lead to it; return the exit status, 0."""
    layout = _layout(config)
    with disk_faults():
        found = sorted(entries(layout), key=lambda entry: entry.last_used, reverse=True)
        names = _names_by_digest(named_refs(layout))
    if as_json:
        adapters = [asdict(entry) | {"refs": [asdict(n) for n in names.get(entry.digest, [])]} for entry in found]
        print_json({"store": str(layout.root), "adapters": adapters})
        return 0
    rows = table("digest", "size", "last used", "names", "state")
    for entry in found:
        shown_names = ", ".join(sorted(named.lora_name for named in names.get(entry.digest, [])))
        last_used = datetime.fromtimestamp(entry.last_used).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        state = "ok" if entry.fault is None else f"corrupt: {entry.fault}"
        add_row(rows, entry.digest[:_SHOWN_DIGITS], size(entry.nbytes), last_used, shown_names or "-", state)
    if found:
        console().print(rows)
    _say(f"{_adapters(len(found))}, {size(sum(entry.nbytes for entry in found))} in {layout.root}")
    return 0


def verify_store(config: StoreConfig, *, as_json: bool) -> int:
    """Read and hash every adapter, and print those that are corrupt; return the exit status, 1 when there are any."""
    layout = _layout(config)
    num_adapters = nbytes = 0
    corrupt = []
    with disk_faults():
        for entry in _with_progress(verify(layout), layout.usage().nbytes):
            num_adapters += 1
            nbytes += entry.nbytes
            if entry.fault is not None:
                corrupt.append(entry)
    if as_json:
        counts = {"store": str(layout.root), "num_adapters": num_adapters, "nbytes": nbytes}
        print_json(counts | {"corrupt": [asdict(entry) for entry in corrupt]})
    else:
        for entry in corrupt:
            _say(f"{entry.digest}: {entry.fault}")
        _say(f"{_adapters(num_adapters)} verified, {size(nbytes)}; {len(corrupt)} corrupt")
    return 1 if corrupt else 0


def clean_store(config: StoreConfig, *, as_json: bool) -> int:
    """Remove what is corrupt, leads nowhere, was left behind or exceeds the quota; return the exit status, 0."""
    layout = _layout(config)
    with DiskStore.open(layout.root, max_bytes=config.max_bytes) as store:
        collected = store.gc()
        nbytes = store.nbytes
    if as_json:
        print_json({"store": str(layout.root), "nbytes": nbytes} | asdict(collected))
        return 0
    _say(
        f"removed {collected.num_corrupt} corrupt and {collected.num_evicted} unused adapters, {collected.num_refs} "
        f"names that led nowhere, {collected.num_leftovers} leftovers"
    )
    _say(f"{size(collected.freed_nbytes)} freed, {size(nbytes)} in {layout.root}")
    return 0


def _layout(config: StoreConfig) -> StoreLayout:
    layout = StoreLayout(config.root.expanduser().absolute())
    if not layout.store.is_dir():
        raise ConfigInvalid(f"there is no adapter store at {str(layout.root)!r}; --store or LORAMUX_STORE says where")
    return layout


def _names_by_digest(refs: Iterable[NamedRef]) -> dict[str, list[NamedRef]]:
    names: dict[str, list[NamedRef]] = {}
    for named in refs:
        names.setdefault(named.ref.digest, []).append(named)
    return names


def _with_progress(checked: Iterable[StoredEntry], nbytes: int) -> Iterator[StoredEntry]:
    """Show how far the walk is, where somebody watches; standard output stays free for the result."""
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("verifying", total=nbytes)
        for entry in checked:
            progress.advance(task, entry.nbytes)
            yield entry


def _adapters(number: int) -> str:
    return "1 adapter" if number == 1 else f"{number} adapters"


def _say(line: str) -> None:
    console().print(line, markup=False, soft_wrap=True)
