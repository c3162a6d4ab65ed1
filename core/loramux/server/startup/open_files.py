"""How many files and connections the process may have open at once."""

from __future__ import annotations

import resource

from loramux.errors import ConfigInvalid

SPARE_FILES = 256
"""What the rest of the process opens: weights, adapters, connections to their sources, logs."""


def make_room_for(max_connections: int) -> None:
    """Raise the process's own limit as far as that many connections need; raises ConfigInvalid where it is too low."""
    needed = max_connections + SPARE_FILES
    allowed = raise_limit(needed)
    if allowed < needed:
        raise ConfigInvalid(
            f"--max-connections {max_connections} needs {needed} open files, this process may have {allowed}: raise "
            f"the limit (ulimit -n {needed}), or give --max-connections {max(1, allowed - SPARE_FILES)}"
        )


def raise_limit(needed: int) -> int:
    """Raise the process's own limit to so many open files, or as far as it goes; return how many it may have then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
