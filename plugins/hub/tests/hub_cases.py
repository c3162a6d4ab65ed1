"""Adapters on a fake Hub, resolvers that look for them, and faults that must not show a secret."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fake_hub import FakeHub, Repo
from loramux.errors import LoramuxError, ResolverFailed
from loramux.lora.remote import RemoteAdapter, RemoteFile
from loramux_hub import HubLoRAResolver

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = {CONFIG: b"{}", WEIGHTS: b"weights", "README.md": b"# An adapter"}
TOKEN = "hf_canary"

T = TypeVar("T")


class Adapters:
    """A Hub whose repository `my-org/sql` is an adapter; whatever is asked is asked by a resolver of its own."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        self.repo = self.add_repo("my-org/sql")
        self.sha = self.repo.commit(FILES)

    def add_repo(self, repo_id: str) -> Repo:
        self.hub.repos[repo_id] = Repo()
        return self.hub.repos[repo_id]

    def resolver(self, allow: str = "my-org/*, other/adapter") -> HubLoRAResolver:
        resolver = HubLoRAResolver.from_config({"allow": allow, "endpoint": self.hub.url})
        assert resolver is not None
        return resolver

    def run(self, work: Callable[[HubLoRAResolver], Awaitable[T]], resolver: HubLoRAResolver | None = None) -> T:
        """Do something with a resolver on a loop of its own, and close it there."""
        resolver = resolver or self.resolver()

        async def work_and_close() -> T:
            try:
                return await work(resolver)
            finally:
                await resolver.aclose()

        return asyncio.run(work_and_close())

    def locate(self, name: str = "my-org/sql", resolver: HubLoRAResolver | None = None) -> RemoteAdapter | None:
        return self.run(lambda it: it.locate("base", name), resolver)

    def found(self, name: str = "my-org/sql") -> RemoteAdapter:
        found = self.locate(name)
        assert found is not None
        return found

    def download(self, file: RemoteFile, destination: Path) -> bytes:
        self.run(lambda it: it.download(file, destination))
        return destination.read_bytes()

    def calls(self) -> list[str]:
        return [str(call) for call in self.hub.calls]

    def fault_of(self, question: Callable[[], object]) -> ResolverFailed:
        """Return the fault that a question ends in: no call was made twice, and nothing secret is shown."""
        num_calls = len(self.hub.calls)
        with pytest.raises(ResolverFailed) as failure:
            question()
        calls = self.calls()[num_calls:]
        assert len(set(calls)) == len(calls), f"asked again: {calls}"
        assert_shows_no_secret(failure.value)
        return failure.value


def assert_shows_no_secret(error: LoramuxError) -> None:
    shown = f"{error} {error!r}"
    assert "canary" not in shown.lower(), shown
