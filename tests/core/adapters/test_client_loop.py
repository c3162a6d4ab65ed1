"""Resolvers that keep an fsspec file system: both ways of using it work, whichever loop it is bound to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem

from loramux.adapters.client_loop import client_loop
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import ResolverFailed
from loramux.lora.request import LoRARequest
from plugin_cases import TableResolver, active


class LoopBoundFileSystem(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """As s3fs and HTTP are: its connections serve the loop on which they were made, and no other."""

    cachable = False

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("Timeout context manager should be used inside a task")
        return b"/adapters/" + path.encode()


class Awaits(TableResolver):
    def __init__(self) -> None:
        super().__init__()
        self.fs = LoopBoundFileSystem()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return LoRARequest(lora_name, 1, (await self.fs._cat_file(lora_name)).decode())


class Blocks(Awaits):
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return LoRARequest(lora_name, 1, self.fs.cat_file(lora_name).decode())


@pytest.mark.parametrize("resolver_class", [Awaits, Blocks])
async def test_a_file_system_works_awaited_and_blocking(resolver_class: type[Awaits]) -> None:
    resolver = resolver_class()
    assert resolver.fs.cat_file("used before") == b"/adapters/used before"
    chain = ResolverChain([active(resolver)])
    found = [(await chain.resolve("base", name)).lora_request.lora_path for name in ("one", "two")]
    await chain.close()
    assert found == ["/adapters/one", "/adapters/two"]


def test_a_file_system_made_for_coroutines_goes_wherever_its_resolver_runs() -> None:
    resolver = Awaits()
    resolver.fs = LoopBoundFileSystem(asynchronous=True)
    assert client_loop(resolver) is None


async def test_another_fault_is_not_asked_for_twice() -> None:
    class Fails(Awaits):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            self.asked.append(lora_name)
            raise PermissionError("403")

    resolver = Fails()
    chain = ResolverChain([active(resolver)])
    with pytest.raises(ResolverFailed, match="PermissionError: 403"):
        await chain.resolve("base", "sql")
    await chain.close()
    assert resolver.asked == ["sql"]
