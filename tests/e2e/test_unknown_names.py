"""Names that nobody has: however many there are, no file outside the roots, no connection, no memory."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.resolver_policy import ResolverPolicy
from loramux_filesystem import FilesystemLoRAResolver

NUM_WARM_UP = 2_000  # threads start, code is loaded
AT_ONCE = 64
MOST_GROWTH_MIB = 5.0
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


@pytest.mark.parametrize("num_names", [5_000, pytest.param(1_000_000, marks=pytest.mark.campaign)])
async def test_unknown_names_open_nothing_outside_the_roots_and_leave_nothing_behind(
    tmp_path: Path, num_names: int
) -> None:
    (tmp_path / "root" / "sql").mkdir(parents=True)
    (tmp_path / "root" / "sql" / "adapter_config.json").write_text("{}")
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    (tmp_path / "secret").mkdir()
    policies = (ResolverPolicy(unknown_seconds=0), ResolverPolicy())
    members = [
        ActiveResolver(f"files-{index}", FilesystemLoRAResolver(tmp_path / "root"), policy)
        for index, policy in enumerate(policies)
    ]
    chain = ResolverChain(members)
    registry = AdapterRegistry(["base"], chain, _never_loads, _never_loads)
    await _ask(registry, range(NUM_WARM_UP))
    before = _resident_bytes()

    with _watched(tmp_path / "root") as seen:
        await _ask(registry, range(NUM_WARM_UP, NUM_WARM_UP + num_names))

    growth_mib = (_resident_bytes() - before) / 2**20
    await registry.close()
    await chain.close()
    assert seen == []
    assert registry.adapters() == []
    sys.stdout.write(f"{num_names} unknown names: {growth_mib:.1f} MiB\n")
    assert growth_mib < MOST_GROWTH_MIB


async def _ask(registry: AdapterRegistry, numbers: range) -> None:
    async def ask(number: int) -> None:
        name = PATTERNS[number % len(PATTERNS)].format(number)
        with pytest.raises(AdapterNotFound):
            await registry.lookup(name)

    for start in range(numbers.start, numbers.stop, AT_ONCE):
        await asyncio.gather(*map(ask, range(start, min(start + AT_ONCE, numbers.stop))))


async def _never_loads(_: object) -> None:  # type: ignore[misc]  # what it would return does not matter
    raise AssertionError("nothing is there to be loaded")


def _resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


_watchers: list[tuple[str, list[str]]] = []
_is_installed = False


@contextmanager
def _watched(root: Path) -> Iterator[list[str]]:
    """Collect what is opened or listed outside the root, and every connection."""
    global _is_installed
    if not _is_installed:
        sys.addaudithook(_note)
        _is_installed = True
    seen: list[str] = []
    _watchers.append((str(root.resolve()), seen))
    try:
        yield seen
    finally:
        _watchers.clear()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if not _watchers or event not in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"):
        return
    for root, seen in _watchers:
        path = arguments[0]
        is_inside = event[0] == "o" and isinstance(path, str | os.PathLike) and os.fsdecode(path).startswith(root)
        if not is_inside and not isinstance(path, int):
            seen.append(f"{event} {path!r}")
