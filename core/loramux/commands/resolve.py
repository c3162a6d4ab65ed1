"""`loramux resolve NAME`: who has the adapter, which version, and what each resolver said."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from loramux.adapters.inspection import inspect_adapter
from loramux.adapters.resolution import Trace
from loramux.commands.printing import add_row, console, print_json, size, table
from loramux.commands.search import SearchResult, search
from loramux.lora.plugin_manager import PluginConfig


def show_resolution(name: str, *, base_model_name: str, plugins: PluginConfig, explains: bool, as_json: bool) -> int:
    """Print where the adapter is, or why it is not served; return the exit status (see SearchResult)."""
    result = search(
        name,
        base_model_name=base_model_name,
        plugins=plugins,
        inspect=lambda name, folder, root: inspect_adapter(folder, name=name, allowed_root=root),
    )
    if as_json:
        print_json(_document(name, result, explains=explains))
        return result.exit_status
    out = console()
    if explains:
        out.print(_trace_table(result.trace))
        out.print()
    for line in _lines(name, result):
        out.print(line, markup=False, soft_wrap=True)
    return result.exit_status


def _lines(name: str, result: SearchResult) -> list[str]:
    if result.error is not None:
        return [str(result.error)]
    found, inspection = result.found, result.inspection
    assert found is not None and inspection is not None
    lines = [f"{name}: found by {found.resolver} at {found.root}", f"revision {found.revision or '-'}"]
    if not inspection.is_valid:
        return [*lines, *(f"refused: {check.reason}" for check in inspection.checks if check.verdict == "refused")]
    ranks = sorted({module.rank for module in inspection.modules})
    shown_ranks = ", ".join(map(str, ranks))
    return [
        *lines,
        f"sha256 {inspection.digest}",
        f"{len(inspection.modules)} modules, rank {shown_ranks}, {size(inspection.nbytes)}",
    ]


def _trace_table(trace: Trace) -> Table:
    steps = table("resolver", "verdict", "ms", "reason")
    for step in trace.steps:
        add_row(steps, step.resolver, step.verdict, f"{step.milliseconds:.1f}", step.reason or "-")
    if not trace.steps:
        add_row(steps, "-", "-", "-", "no resolver is active")
    return steps


def _document(name: str, result: SearchResult, *, explains: bool) -> dict[str, object]:
    found, inspection = result.found, result.inspection
    document: dict[str, object] = {"name": name, "found": found is not None}
    if result.error is not None:
        document["error"] = {"type": type(result.error).__name__, "message": str(result.error)}
    if found is not None and inspection is not None:
        refusals = [check.reason for check in inspection.checks if check.verdict == "refused"]
        document |= {
            "resolver": found.resolver,
            "root": found.root,
            "revision": found.revision,
            "digest": inspection.digest,
            "valid": inspection.is_valid,
            "refusals": refusals,
        }
    if explains:
        document["steps"] = [asdict(step) for step in result.trace.steps]
    return document
