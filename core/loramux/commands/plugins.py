"""`loramux plugins`: what is installed, what of it is active, and why the rest is not."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from loramux.commands.printing import add_row, console, print_json, table
from loramux.lora.plugin_manager import PluginConfig, PluginManager, PluginStatus


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
        print_json([asdict(status) for status in statuses])
        return
    console().print(_table(statuses) if statuses else "No plugins are installed.")


def _table(statuses: list[PluginStatus]) -> Table:
    rows = table("name", "distribution", "version", "active", "looks in", "hooks")
    for status in statuses:
        add_row(
            rows,
            status.name,
            status.distribution or "-",
            status.version or "-",
            "yes" if status.is_active and not status.reason else f"no: {status.reason}",
            status.looks_in or "-",
            ", ".join(status.hooks) or "-",
        )
    return rows
