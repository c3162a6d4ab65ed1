"""Ask a registry for names that nobody has, in a process of its own: `python unknown_names.py ROOT NUM_NAMES`.

Prints what was opened or connected outside the root, and how much memory the names took, as JSON. A process of its own,
because a test runner keeps things, too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

import psutil

from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.resolver_policy import ResolverPolicy
from loramux_filesystem import FilesystemLoRAResolver

NUM_WARM_UP = 2_000  # threads start, code is loaded
AT_ONCE = 64
PATTERNS = (
    "unknown/{}",
    "org-{}/repo@main",
    "a/b/c/d/{}",
    "x{}",
    "../../../../etc/passwd{}",
    "/etc/passwd{}",
    "{}/../../secret",
    "~root/{}",
    "s3://bucket/{}",
    "sql/{}",
    "{}\x00",
)
WATCHED = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo")


async def main(root: Path, num_names: int) -> dict[str, object]:
    """Ask, and watch."""
    policies = (ResolverPolicy(unknown_seconds=0), ResolverPolicy())  # one is asked every time, one remembers
    members = [
        ActiveResolver(f"files-{index}", FilesystemLoRAResolver(root), policy) for index, policy in enumerate(policies)
    ]
    chain = ResolverChain(members)
    registry = AdapterRegistry(["base"], chain, _never, _never)
    await _ask(registry, range(NUM_WARM_UP))
    before = _resident_nbytes()
    seen: list[str] = []
    _watch(root, seen)
    await _ask(registry, range(NUM_WARM_UP, NUM_WARM_UP + num_names))
    outside = list(seen)
    growth = _resident_nbytes() - before
    num_served = len(registry.adapters())
    await registry.close()
    await chain.close()
    return {"growth_nbytes": growth, "outside": outside, "num_served": num_served}


async def _ask(registry: AdapterRegistry, numbers: range) -> None:
    async def ask(number: int) -> None:
        try:
            await registry.lookup(PATTERNS[number % len(PATTERNS)].format(number))
        except AdapterNotFound:
            return
        raise AssertionError("nobody has this name")

    for start in range(numbers.start, numbers.stop, AT_ONCE):
        await asyncio.gather(*map(ask, range(start, min(start + AT_ONCE, numbers.stop))))


async def _never(_: object) -> None:  # type: ignore[misc]  # what it would return does not matter
    raise AssertionError("nothing is there to be loaded")


def _resident_nbytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _watch(root: Path, seen: list[str]) -> None:
    inside = str(root.resolve())

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event not in WATCHED or isinstance(arguments[0], int):
            return
        path = arguments[0]
        is_file = event[0] == "o" and isinstance(path, str | os.PathLike)
        if not (is_file and os.fsdecode(path).startswith(inside)):
            seen.append(f"{event} {path!r}")

    sys.addaudithook(note)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))))
