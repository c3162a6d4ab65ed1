"""The chain: who answers, what an error means, and what a resolver cannot do to the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loramux.adapters import resolver_calls, resolver_thread
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound, ResolverDenied, ResolverFailed
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from plugin_cases import TableResolver, active


class Custom(LoRAResolver):
    """Answers with whatever the given function does."""

    def __init__(self, answer: Callable[[str], Awaitable[object]]) -> None:
        self.answer = answer

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return await self.answer(lora_name)  # type: ignore[return-value]  # wrong answers are under test


def raising(error: BaseException) -> Custom:
    async def answer(name: str) -> object:
        raise error

    return Custom(answer)


def returning(value: object) -> Custom:
    async def answer(name: str) -> object:
        return value

    return Custom(answer)


@asynccontextmanager
async def chain_of(*resolvers: LoRAResolver) -> AsyncIterator[ResolverChain]:
    chain = ResolverChain([active(resolver, f"r{i}") for i, resolver in enumerate(resolvers)])
    try:
        yield chain
    finally:
        await chain.close()


async def test_the_first_answer_wins_and_later_resolvers_are_not_asked() -> None:
    later = TableResolver({"sql": "/later"})
    async with chain_of(TableResolver(), TableResolver({"sql": "/first"}), later) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == "/first"
    assert later.asked == []


async def test_a_name_that_nobody_knows_is_not_found() -> None:
    async with chain_of(TableResolver(), raising(FileNotFoundError("no such key"))) as chain:
        with pytest.raises(AdapterNotFound, match="adapter 'sql' does not exist"):
            await chain.resolve("base", "sql")


async def test_no_resolver_ever_sees_a_name_that_fails_the_grammar() -> None:
    resolver = TableResolver()
    async with chain_of(resolver) as chain:
        with pytest.raises(AdapterNotFound):
            await chain.resolve("base", "../etc")
    assert resolver.asked == []


async def test_a_missing_file_is_left_to_the_next_resolver() -> None:
    async with chain_of(raising(FileNotFoundError()), TableResolver({"sql": "/a"})) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == "/a"


def not_async() -> LoRAResolver:
    class NotAsync(TableResolver):
        def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # type: ignore[override]
            return None

    return NotAsync()


FAULTS = [
    (raising(PermissionError("403")), "resolver 'r0' failed on 'sql': PermissionError: 403"),
    (raising(SystemExit(1)), "resolver 'r0' failed on 'sql': SystemExit: 1"),
    (raising(asyncio.CancelledError()), "resolver 'r0' failed on 'sql': it cancelled itself"),
    (raising(ResolverFailed("bucket is down", retry_after_seconds=7)), "bucket is down"),
    (returning("/a"), "resolver 'r0' returned str for 'sql'; it must return a LoRARequest or None"),
    (returning(LoRARequest("other", 1, "/a")), "resolver 'r0' was asked for 'sql', but returned 'other'"),
    (not_async(), "resolver 'r0' has a resolve_lora that is not async: write `async def resolve_lora`"),
]


@pytest.mark.parametrize(("resolver", "message"), FAULTS, ids=range(len(FAULTS)))
async def test_a_fault_ends_the_search_and_names_the_resolver(resolver: LoRAResolver, message: str) -> None:
    namesake = TableResolver({"sql": "/public/namesake"})
    async with chain_of(resolver, namesake) as chain:
        with pytest.raises(ResolverFailed) as failure:
            await chain.resolve("base", "sql")
    assert str(failure.value) == message
    assert namesake.asked == []


async def test_what_a_resolver_says_about_retrying_is_passed_on() -> None:
    async with chain_of(raising(ResolverFailed("down", retryable=False, retry_after_seconds=7))) as chain:
        with pytest.raises(ResolverFailed) as failure:
            await chain.resolve("base", "sql")
    assert (failure.value.retryable, failure.value.retry_after_seconds) == (False, 7)


async def test_a_denied_name_is_not_found_and_nobody_else_is_asked() -> None:
    namesake = TableResolver({"sql": "/public/namesake"})
    async with chain_of(raising(ResolverDenied("tenant b only")), namesake) as chain:
        with pytest.raises(AdapterNotFound, match=r"^adapter 'sql' does not exist$"):
            await chain.resolve("base", "sql")
    assert namesake.asked == []


async def test_a_folder_inside_the_declared_roots_is_accepted(tmp_path: Path) -> None:
    resolver = TableResolver({"sql": str(tmp_path / "sql")})
    resolver.allowed_roots = (tmp_path,)
    async with chain_of(resolver) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == str(tmp_path / "sql")


@pytest.mark.parametrize("answer", ["link/sql", "root/sql", "root/latest", "root/../root/sql"])
async def test_what_lies_in_a_declared_root_is_opened_from_there(tmp_path: Path, answer: str) -> None:
    (tmp_path / "root" / "sql").mkdir(parents=True)
    (tmp_path / "root" / "latest").symlink_to("sql")
    (tmp_path / "link").symlink_to("root")
    resolver = TableResolver({"sql": str(tmp_path / answer)})
    resolver.allowed_roots = (tmp_path / "other", tmp_path / "link")
    async with chain_of(resolver) as chain:
        found = (await chain.resolve("base", "sql")).lora_request
    assert (found.lora_path, found.allowed_root) == (str(tmp_path / "root" / "sql"), str(tmp_path / "root"))


async def test_an_allowed_root_of_the_resolvers_own_making_is_ignored(tmp_path: Path) -> None:
    resolver = returning(LoRARequest("sql", 1, str(tmp_path / "sql"), allowed_root="/"))
    async with chain_of(resolver) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.allowed_root is None
    resolver.allowed_roots = (tmp_path,)
    async with chain_of(resolver) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.allowed_root == str(tmp_path)


@pytest.mark.parametrize("folder", ["elsewhere", "root/../elsewhere", "root/link", "root-and-more", "root/nul\0"])
def test_a_folder_outside_the_declared_roots_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    resolver = TableResolver({"sql": str(tmp_path / folder)})
    resolver.allowed_roots = (tmp_path / "root",)

    async def ask() -> None:
        async with chain_of(resolver) as chain:
            await chain.resolve("base", "sql")

    with pytest.raises(ResolverFailed, match=r"resolver 'r0' returned .* for 'sql', outside its allowed roots: .*root"):
        asyncio.run(ask())


async def test_a_folder_given_as_a_path_object_is_taken_as_text(tmp_path: Path) -> None:
    async with chain_of(returning(LoRARequest("sql", 1, tmp_path))) as chain:  # type: ignore[arg-type]
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == str(tmp_path)


async def test_all_calls_of_a_resolver_share_one_loop_that_is_not_the_servers() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def note_loop(name: str) -> object:
        loops.append(asyncio.get_running_loop())
        return LoRARequest(name, 1, "/a")

    class NotesItsEnd(Custom):
        async def aclose(self) -> None:
            await note_loop("end")

    async with chain_of(NotesItsEnd(note_loop)) as chain:
        await chain.resolve("base", "one")
        await asyncio.gather(chain.resolve("base", "two"), chain.resolve("base", "three"))
    assert len(loops) == 4
    assert set(loops) == {loops[0]}
    assert loops[0] is not asyncio.get_running_loop()


async def test_a_resolver_that_blocks_delays_neither_the_server_nor_other_resolvers() -> None:
    is_blocked, may_go_on = threading.Event(), threading.Event()

    async def block(name: str) -> object:
        if name == "quick":
            return None
        is_blocked.set()
        may_go_on.wait(timeout=30)
        return LoRARequest(name, 1, "/slow")

    class OnlyQuick(TableResolver):
        """Answers before the blocking one is asked."""

    async with chain_of(OnlyQuick({"quick": "/quick"}), Custom(block)) as chain:
        slow = asyncio.create_task(chain.resolve("base", "slow"))
        await asyncio.to_thread(is_blocked.wait, 30)
        assert (await chain.resolve("base", "quick")).lora_request.lora_path == "/quick"
        assert not slow.done()
        may_go_on.set()
        assert (await slow).lora_request.lora_path == "/slow"


async def test_cancelling_reaches_the_resolver_and_leaves_it_usable() -> None:
    has_started, was_cancelled = threading.Event(), threading.Event()

    async def hang(name: str) -> object:
        if name == "next":
            return LoRARequest(name, 1, "/next")
        has_started.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()
        return None

    async with chain_of(Custom(hang)) as chain:
        call = asyncio.create_task(chain.resolve("base", "hanging"))
        await asyncio.to_thread(has_started.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(was_cancelled.wait, 30)
        assert (await chain.resolve("base", "next")).lora_request.lora_path == "/next"


async def test_close_ends_the_threads_although_a_resolver_fails_to_close(caplog: pytest.LogCaptureFixture) -> None:
    class FailsToClose(TableResolver):
        async def aclose(self) -> None:
            raise RuntimeError("socket gone")

    async with chain_of(FailsToClose({"sql": "/a"}), TableResolver()) as chain:
        await chain.resolve("base", "sql")
    assert "resolver did not close resolver=r0" in caplog.text
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("resolver-")] == []


async def test_a_closed_chain_says_so() -> None:
    async with chain_of(TableResolver()) as chain:
        pass
    with pytest.raises(ResolverFailed, match="resolver 'r0' is closed"):
        await chain.resolve("base", "sql")


async def test_a_resolver_that_blocks_its_loop_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resolver_calls, "CLOSE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(resolver_thread, "CLOSE_TIMEOUT_SECONDS", 0.05)
    is_blocked, go_on = threading.Event(), threading.Event()

    async def block(name: str) -> object:
        is_blocked.set()
        go_on.wait()
        return None

    async with chain_of(Custom(block)) as chain:
        call = asyncio.create_task(chain.resolve("base", "sql"))
        await asyncio.to_thread(is_blocked.wait)
        call.cancel()

    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)] * 2
    assert "did not close in time resolver=r0" in caplog.text and "left behind resolver=r0" in caplog.text
    go_on.set()
