"""docs/errors.md lists exactly the errors that the server can send."""

from __future__ import annotations

import re
from pathlib import Path

from loramux.server.errors import ERROR_KINDS, ErrorKind

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"\| (\d{3}) \| `(\w+)` \| `(\w+)` \| (yes|no) \| .{10,} \|")


def is_retried(kind: ErrorKind) -> bool:
    """What official clients do with a response of this kind."""
    return (kind.status in (408, 409, 429) or kind.status >= 500) and kind.headers.get("x-should-retry") != "false"


def test_the_table_of_errors_is_the_one_that_the_server_uses() -> None:
    listed = {(int(status), code, type_, retried) for status, code, type_, retried in ROW.findall(DOCS.read_text())}

    assert listed == {
        (kind.status, code, kind.type, "yes" if is_retried(kind) else "no") for code, kind in ERROR_KINDS.items()
    }


def test_every_row_of_the_table_is_read_by_this_test() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if re.match(r"\| \d", line)]

    assert [line for line in rows if not ROW.fullmatch(line)] == []
    assert len(rows) == len(ERROR_KINDS)
