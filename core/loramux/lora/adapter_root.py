"""Which folders may be the root of adapters: none whose content is not about adapters, or is not the operator's."""

from __future__ import annotations

import stat
from pathlib import Path


def why_unsafe(root: Path) -> str | None:
    """Say why adapters should not be looked for below an existing folder; None when they may."""
    resolved = root.resolve()
    if resolved == Path(resolved.anchor):
        return "it is the root of the whole file system"
    if resolved == _home():
        return "it is a home directory; give a folder in it that holds nothing but adapters"
    if resolved.stat().st_mode & stat.S_IWOTH:
        return "every user of this machine may write there"
    return None


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except RuntimeError:  # a user without one
        return None
