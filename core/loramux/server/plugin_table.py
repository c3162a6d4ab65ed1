"""`loramux plugins`: what is installed, what of it is active, and why the rest is not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from loramux.lora.plugin_manager import PluginConfig, PluginManager, PluginStatus

_WIDTH_OF_A_FILE = 200


def show_plugins(config: PluginConfig, *, as_json: bool) -> None:
    """Print the plugins to standard output, then raise ConfigInvalid if they would keep a server from starting."""
    manager = PluginManager(config)
    try:
        _print(manager.report(), as_json=as_json)
        manager.check()
    finally:
        manager.close()


def _print(statuses: list[PluginStatus], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([asdict(status) for status in statuses], indent=2) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    if not statuses:
        console.print("No plugins are installed.")
        return
    console.print(_table(statuses))


def _table(statuses: list[PluginStatus]) -> Table:
    table = Table("name", "distribution", "version", "active", "looks in", "hooks", box=None, header_style="bold")
    for status in statuses:
        table.add_row(
            status.name,
            status.distribution or "-",
            status.version or "-",
            "yes" if status.is_active and not status.reason else f"no: {status.reason}",
            status.looks_in or "-",
            ", ".join(status.hooks) or "-",
        )
    return table
