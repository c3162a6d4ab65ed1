"""Plugins made in memory: entry points without a distribution on disk, and resolvers that answer from a table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import Distribution, EntryPoint
from typing import Any

from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver


class FakeDistribution(Distribution):
    """A distribution that is only a name and a version."""

    def __init__(self, name: str) -> None:
        self._metadata = {"Name": name, "Version": "1.2"}

    @property
    def metadata(self) -> Any:
        return self._metadata

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


class FakeEntryPoint(EntryPoint):
    """An entry point that loads the given object, or raises it."""

    def __init__(self, name: str, value: object, distribution: str) -> None:
        super().__init__(name, "in.memory:value", "loramux")
        vars(self).update(dist=FakeDistribution(distribution), loads=value)

    def load(self) -> Any:
        value = vars(self)["loads"]
        if isinstance(value, BaseException):
            raise value
        return value


def entry_point(name: str, value: object, distribution: str = "some-dist") -> EntryPoint:
    return FakeEntryPoint(name, value, distribution)


class TableResolver(LoRAResolver):
    """Answers from a table of name → folder; counts how often it was asked, and for what."""

    def __init__(self, folders: Mapping[str, str] | None = None) -> None:
        self.folders = dict(folders or {})
        self.asked: list[str] = []

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        self.asked.append(lora_name)
        folder = self.folders.get(lora_name)
        return None if folder is None else LoRARequest(lora_name, 999, folder)


def active(resolver: LoRAResolver, name: str = "table") -> ActiveResolver:
    return ActiveResolver(name, resolver)
