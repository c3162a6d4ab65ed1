"""Adapters of a remote source through the whole server: found, fetched, checked, served, replaced, and served again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loramux import AsyncLLMEngine, EngineArgs
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.materializer import Materializer
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME
from loramux.lora.resolver_policy import ResolverPolicy
from loramux.server.startup.launch import EvictionRelay
from remote_cases import Shelf, Upload
from served_engine import ServedEngine, serve_engine


@pytest.fixture
def relay() -> EvictionRelay:
    return EvictionRelay()


@pytest.fixture
async def engine(tiny_llama: Path, relay: EvictionRelay) -> AsyncIterator[AsyncLLMEngine]:
    arguments = EngineArgs(
        model=str(tiny_llama), enable_lora=True, max_loras=1, max_cpu_loras=1, kv_cache_memory_bytes=8 * 2**20
    )
    engine = AsyncLLMEngine.from_engine_args(arguments, on_adapter_event=relay)
    yield engine
    engine.shutdown()


@pytest.fixture
def upload(make_adapter: Callable[..., Path]) -> Callable[..., Upload]:
    def make(seed: int, **changes: Any) -> Upload:
        folder = make_adapter(f"remote/{seed}", seed=seed, rank=4)
        files = {"config": (folder / CONFIG_NAME).read_bytes(), "weights": (folder / WEIGHTS_NAME).read_bytes()}
        return Upload(**{**files, "revision": f"v{seed}", **changes})

    return make


@pytest.fixture
def serve(engine: AsyncLLMEngine, tiny_llama: Path, tmp_path: Path, relay: EvictionRelay) -> Any:
    @asynccontextmanager
    async def serve(shelf: Shelf) -> AsyncIterator[ServedEngine]:
        policy = ResolverPolicy(revalidate_seconds=3600, unknown_seconds=0)
        with DiskStore.open(tmp_path / "store", min_free_bytes=0) as store:
            resolvers = [ActiveResolver("shelf", shelf, policy, "one")]
            async with serve_engine(
                engine, tiny_llama, resolvers=resolvers, fetcher=Materializer(store), relay=relay
            ) as served:
                yield served

    return serve


async def ask(served: ServedEngine, model: str) -> Any:
    body = {"model": model, "prompt": "hello there", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{served.url}/v1/completions", json=body) as response,
    ):
        answer = await response.json()
        return answer["choices"][0]["text"] if response.status == 200 else (response.status, answer["error"])


async def test_what_a_remote_source_has_is_answered_like_the_same_folder_here(
    serve: Any, upload: Callable[..., Upload], make_adapter: Callable[..., Path]
) -> None:
    shelf = Shelf({"team/sql": upload(1), "json": upload(2)})
    async with serve(shelf) as served:
        remote = [await ask(served, name) for name in ("team/sql", "json", "team/sql")]  # one place in memory
        for seed in (1, 2):
            await served.registry.add(f"local-{seed}", str(make_adapter(f"remote/{seed}", seed=seed, rank=4)))
        local = [await ask(served, name) for name in ("local-1", "local-2", "local-1")]
        base = await ask(served, "tiny")
        roots = {adapter.name: adapter.root for adapter in served.registry.adapters()}

    assert remote == local
    assert len({*remote, base}) == 3
    assert len(shelf.downloads) == 4  # read again from the store, not from the source
    assert roots["team/sql"] == "shelf://team/sql"


async def test_after_a_restart_the_store_answers_without_the_source(serve: Any, upload: Callable[..., Upload]) -> None:
    shelf = Shelf({"sql": upload(1)})
    async with serve(shelf) as served:
        before = await ask(served, "sql")
    gone = Shelf(outage=ConnectionRefusedError("down"))
    async with serve(gone) as served:
        assert await ask(served, "sql") == before
    assert gone.downloads == []


async def test_a_new_upload_takes_over_and_is_never_mixed_with_the_old_one(
    serve: Any, upload: Callable[..., Upload]
) -> None:
    shelf = Shelf({"sql": upload(1)})
    async with serve(shelf) as served:
        old = await ask(served, "sql")
        shelf.uploads["sql"] = upload(2)
        for record in served.registry._generations._by_id.values():
            record.check_at = 0.0  # due now
        answers = [await ask(served, "sql") for _ in range(5)]
        await asyncio.gather(*served.registry._refresher._tasks.values())
        new = await ask(served, "sql")

    assert new != old
    assert set(answers) <= {old, new}
    assert answers == sorted(answers, key=lambda answer: answer == new)  # once new, always new


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"config": b"{}"}, "adapter_invalid"),
        ({"weights": b"\x00" * 64}, "adapter_invalid"),
        ({"config": json.dumps({"peft_type": "LORA", "use_dora": True}).encode()}, "adapter_invalid"),
    ],
)
async def test_an_upload_that_is_no_adapter_is_refused_and_served_once_it_is_repaired(
    serve: Any, upload: Callable[..., Upload], tmp_path: Path, changes: dict[str, bytes], code: str
) -> None:
    shelf = Shelf({"sql": upload(1, **changes)})
    async with serve(shelf) as served:
        for _ in range(3):
            status, error = await ask(served, "sql")
            assert (status, error["code"]) == (400, code)
            assert str(tmp_path) not in error["message"]
        assert list((tmp_path / "store" / "refs").iterdir()) == []
        assert len(shelf.downloads) == 2
        shelf.uploads["sql"] = upload(1, revision="repaired")
        assert isinstance(await ask(served, "sql"), str)


async def test_bytes_that_rot_on_the_disk_are_never_served(
    serve: Any, upload: Callable[..., Upload], tmp_path: Path
) -> None:
    shelf = Shelf({"sql": upload(1)})
    async with serve(shelf) as served:
        right = await ask(served, "sql")
    (weights,) = (tmp_path / "store" / "store").rglob(WEIGHTS_NAME)
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0x40
    weights.chmod(0o600)
    weights.write_bytes(content)
    async with serve(shelf) as served:
        answers = [await ask(served, "sql") for _ in range(2)]

    assert {answer for answer in answers if isinstance(answer, str)} <= {right}
    assert answers[-1] == right
