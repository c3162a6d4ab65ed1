"""The grammar of adapter names: what fails it never reaches a plugin, a cache or a log line as a name."""

from __future__ import annotations

import re

_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}")


def is_adapter_name(name: str) -> bool:
    """Return whether the name may be looked up; segments between slashes are never empty, `.` or `..`."""
    return _PATTERN.fullmatch(name) is not None and not {"", ".", ".."}.intersection(name.split("/"))
