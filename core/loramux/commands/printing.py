"""How commands print: tables for people, JSON for programs, both to standard output."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_A_FILE = 200


def console() -> Console:
    """Return where tables go; a pipe or a file gets long lines instead of folded ones."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, highlight=False)


def table(*headings: str) -> Table:
    """Start a table in the one style of all commands."""
    return Table(*headings, box=None, header_style="bold")


def add_row(to: Table, *cells: object) -> None:
    """Add a row of plain text: nothing in it is taken for markup."""
    to.add_row(*(Text(str(cell)) for cell in cells))


def print_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def size(nbytes: int) -> str:
    """Say a number of bytes in the unit that suits it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
