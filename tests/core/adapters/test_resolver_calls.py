"""One resolver as the chain sees it: within its time, again where that helps, not at all while it is out of order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loramux.adapters import retrying
from loramux.adapters.resolution import Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound, ResolverDenied, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.lora.resolver_policy import ResolverPolicy
from plugin_cases import TableResolver


@pytest.fixture(autouse=True)
def _no_delay_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY_SECONDS", 0.0)


class Scripted(LoRAResolver):
    """Does one thing after the other; the last one again and again."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.num_asked = 0

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        step = self.script[min(self.num_asked, len(self.script) - 1)]
        self.num_asked += 1
        if step == "hang":
            await asyncio.Event().wait()
        if isinstance(step, BaseException):
            raise step
        return None if step is None else LoRARequest(lora_name, 1, str(step))


@asynccontextmanager
async def chain_of(*members: tuple[LoRAResolver, ResolverPolicy]) -> AsyncIterator[ResolverChain]:
    chain = ResolverChain([ActiveResolver(f"r{i}", resolver, policy) for i, (resolver, policy) in enumerate(members)])
    try:
        yield chain
    finally:
        await chain.close()


DOWN = ResolverFailed("the bucket is down")
DEFAULT = ResolverPolicy()


@pytest.mark.parametrize("error", [DOWN, TimeoutError("read"), ConnectionResetError("reset")])
async def test_what_may_heal_is_tried_three_times(error: Exception) -> None:
    heals, does_not = Scripted(error, error, "/a"), Scripted(error)
    async with chain_of((heals, DEFAULT)) as chain:
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == "/a"
    async with chain_of((does_not, DEFAULT)) as chain:
        with pytest.raises(ResolverFailed):
            await chain.resolve("base", "sql")
    assert (heals.num_asked, does_not.num_asked) == (3, 3)


@pytest.mark.parametrize(
    "error",
    [
        ResolverFailed("403", retryable=False),
        ResolverFailed("busy", retry_after_seconds=30),
        RuntimeError("a bug"),
        PermissionError("no"),
        ResolverDenied("not for you"),
    ],
)
async def test_what_may_not_heal_soon_is_tried_once(error: Exception) -> None:
    resolver = Scripted(error)
    async with chain_of((resolver, DEFAULT)) as chain:
        with pytest.raises((ResolverFailed, AdapterNotFound)):
            await chain.resolve("base", "sql")
    assert resolver.num_asked == 1


async def test_a_resolver_that_hangs_is_given_up_in_its_time_and_named() -> None:
    async with chain_of((Scripted("hang"), ResolverPolicy(timeout_seconds=0.01))) as chain:
        with pytest.raises(ResolverFailed, match=r"resolver 'r0' did not answer within 0\.01 s"):
            await chain.resolve("base", "sql")


async def test_a_resolver_that_blocks_its_loop_is_told_so() -> None:
    go_on = threading.Event()

    class Blocks(TableResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            go_on.wait(timeout=30)
            return None

    message = r"resolver 'r0' did not answer within 0\.05 s, and blocks its event loop: .* asyncio\.to_thread"
    async with chain_of((Blocks(), ResolverPolicy(timeout_seconds=0.05))) as chain:
        with pytest.raises(ResolverFailed, match=message):
            await chain.resolve("base", "sql")
        go_on.set()


async def test_after_five_failures_a_resolver_is_left_alone_and_the_client_told_when_to_come_back() -> None:
    resolver = Scripted(ResolverFailed("down", retry_after_seconds=30))
    async with chain_of((resolver, DEFAULT)) as chain:
        for _ in range(5):
            with pytest.raises(ResolverFailed, match="down"):
                await chain.resolve("base", "sql")
        with pytest.raises(ResolverFailed, match="resolver 'r0' has failed again and again") as refusal:
            await chain.resolve("base", "other")
        ((name, seconds),) = chain.states()
    assert (resolver.num_asked, name) == (5, "r0")
    assert 0 < seconds <= (refusal.value.retry_after_seconds or 0) <= 6


@pytest.mark.parametrize(
    "error", [ResolverFailed("403", retryable=False), ResolverDenied("no"), RuntimeError("a bug"), None]
)
async def test_a_source_that_says_no_is_not_out_of_order(error: Exception | None) -> None:
    resolver = Scripted(error)
    async with chain_of((resolver, ResolverPolicy(unknown_seconds=0))) as chain:
        for _ in range(10):
            with pytest.raises((ResolverFailed, AdapterNotFound)):
                await chain.resolve("base", "sql")
    assert resolver.num_asked == 10


async def test_a_name_that_is_not_known_is_asked_for_again_only_after_a_while() -> None:
    resolver = TableResolver()
    async with chain_of((resolver, ResolverPolicy(unknown_seconds=30))) as chain:
        for _ in range(3):
            with pytest.raises(AdapterNotFound):
                await chain.resolve("base", "sql")
        assert resolver.asked == ["sql"]
        resolver.folders["sql"] = "/a"
        chain.forget("sql")
        assert (await chain.resolve("base", "sql")).lora_request.lora_path == "/a"


async def test_a_resolver_that_remembers_nothing_is_asked_every_time() -> None:
    resolver = TableResolver()
    async with chain_of((resolver, ResolverPolicy(unknown_seconds=0))) as chain:
        for _ in range(3):
            with pytest.raises(AdapterNotFound):
                await chain.resolve("base", "sql")
    assert resolver.asked == ["sql"] * 3


async def test_where_the_operator_says_so_a_fault_lets_the_others_go_on() -> None:
    passing = ResolverPolicy(on_error="continue")
    async with chain_of((Scripted(DOWN), passing), (TableResolver({"sql": "/b"}), DEFAULT)) as chain:
        assert (await chain.resolve("base", "sql")).resolver == "r1"
        with pytest.raises(ResolverFailed, match="the bucket is down"):  # unavailable, never "not found"
            await chain.resolve("base", "unknown")


async def test_a_resolver_is_asked_only_for_names_that_match_its_globs() -> None:
    private, public = TableResolver({"team-a/x": "/private", "other": "/private"}), TableResolver({"other": "/public"})
    async with chain_of((private, ResolverPolicy(names=("team-*/*",))), (public, DEFAULT)) as chain:
        trace = Trace("other")
        assert (await chain.resolve("base", "team-a/x")).lora_request.lora_path == "/private"
        assert (await chain.resolve("base", "other", trace)).lora_request.lora_path == "/public"
    assert private.asked == ["team-a/x"]
    assert [(step.resolver, step.verdict) for step in trace.steps] == [("r0", "not asked"), ("r1", "found")]


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        ("/a", "found", "/a @ "),
        (None, "not found", ""),
        (ResolverDenied("tenant b"), "denied", "tenant b"),
        (ResolverFailed("403", retryable=False), "failed", "403"),
    ],
)
async def test_every_verdict_is_traced_with_its_reason(answer: object, verdict: str, reason: str) -> None:
    trace = Trace("sql", clock=ticking())
    async with chain_of((Scripted(answer), DEFAULT)) as chain:
        await asyncio.gather(chain.resolve("base", "sql", trace), return_exceptions=True)
    (step,) = trace.steps
    assert (step.resolver, step.verdict, step.reason, step.milliseconds) == ("r0", verdict, reason, 1000)


def ticking() -> Callable[[], float]:
    """Make a clock that goes on by a second at each reading."""
    readings = iter(range(100))
    return lambda: float(next(readings))
