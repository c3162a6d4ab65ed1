"""AdapterChoice: what `--adapters` names: an adapter, with its folder where it needs one, or the base model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loramux.errors import ConfigInvalid
from loramux.lora.request import LoRARequest

BASE = "base"
"""Stands for no adapter at all, wherever a load names adapters."""

LARGEST_PATTERN = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """`name` None is the base model; `path` is set where the engine runs in this process."""

    name: str | None
    path: str | None = None


def read_served(items: Sequence[str]) -> tuple[AdapterChoice, ...]:
    """Read the names of adapters that a server knows; raises ConfigInvalid."""
    names = list(_expanded(items))
    _refuse_twins(names)
    return tuple(AdapterChoice(None if name == BASE else name) for name in names)


def read_local(items: Sequence[str]) -> tuple[AdapterChoice, ...]:
    """Read folders of adapters, `PATH` (named like the folder) or `NAME=PATH`; raises ConfigInvalid."""
    choices = [_local(item) for item in _expanded(items)]
    _refuse_twins([choice.name or BASE for choice in choices])
    return tuple(choices)


def lora_requests(choices: Iterable[AdapterChoice]) -> dict[str, LoRARequest]:
    """Give every adapter that has a folder an id, by name."""
    return {
        choice.name: LoRARequest(choice.name, number, choice.path)
        for number, choice in enumerate(choices, start=1)
        if choice.name is not None and choice.path is not None
    }


def _local(item: str) -> AdapterChoice:
    if item == BASE:
        return AdapterChoice(None)
    name, equals, path = item.partition("=")
    folder = Path(path if equals else item).expanduser()
    if not folder.is_dir():
        raise ConfigInvalid(f"--adapters {item}: there is no such folder")
    return AdapterChoice(name if equals else folder.resolve().name, str(folder))


def _expanded(items: Sequence[str]) -> Iterable[str]:
    """Write out `{0..999}` as a shell would; as many digits as the first number has, if that starts with 0."""
    for item in items:
        match = _RANGE.search(item)
        if match is None:
            if not item:
                raise ConfigInvalid("--adapters: a name must not be empty")
            yield item
            continue
        low, high = int(match[1]), int(match[2])
        if not low <= high < low + LARGEST_PATTERN:
            raise ConfigInvalid(f"--adapters {item}: the range must go up, by less than {LARGEST_PATTERN:,}")
        width = len(match[1]) if match[1].startswith("0") else 0
        for number in range(low, high + 1):
            yield from _expanded([f"{item[: match.start()]}{number:0{width}d}{item[match.end() :]}"])


def _refuse_twins(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigInvalid(f"--adapters: {name!r} is there twice; names must differ (NAME=PATH gives one)")
        seen.add(name)
