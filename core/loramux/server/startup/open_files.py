"""How many files and connections the process may have open at once."""

from __future__ import annotations

import resource

from loramux.errors import ConfigInvalid

SPARE_FILES = 256
"""What the rest of the process opens: weights, adapters, connections to their sources, logs."""


def make_room_for(max_connections: int) -> None:
    """Raise the process's own limit as far as that many connections need; raises ConfigInvalid where it is too low."""
    needed = max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigInvalid(
            f"--max-connections {max_connections} needs {needed} open files, and this process may have {hard}: raise "
            f"the limit (ulimit -n {needed}), or give --max-connections {max(1, hard - SPARE_FILES)}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
