"""The registry: names, ids, one flight per name, and nothing left of names that nobody knows."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from loramux.adapters import arrivals, generation_loader, resolver_calls
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.errors import AdapterInvalid, AdapterNotFound, EngineOverloaded, RequestInvalid, ResolverFailed
from loramux.lora.hookspecs import AdapterEvent
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest
from plugin_cases import TableResolver, active


class FakeEngine:
    """Loads at once, unless `gate` is closed; refuses the paths in `invalid`, and other contents than asked for."""

    def __init__(self) -> None:
        self.loads: list[LoRARequest] = []
        self.unloads: list[int] = []
        self.invalid: set[str] = set()
        self.contents: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_work = asyncio.Event()

    async def load(self, request: LoRARequest) -> LoadedAdapter:
        self.loads.append(request)
        self.has_work.set()
        await self.gate.wait()
        if request.lora_path in self.invalid:
            raise AdapterInvalid(request.lora_name, "no adapter_config.json")
        digest = self.contents.get(request.lora_path, f"digest of {request.lora_path}")
        if request.digest not in (None, digest):
            raise AdapterInvalid(request.lora_name, "its files have changed")
        return LoadedAdapter(digest, nbytes=1, max_rank=1)

    async def unload(self, lora_int_id: int) -> bool:
        self.unloads.append(lora_int_id)
        await self.gate.wait()
        return True


class RecordingHooks(PluginHooks):
    """Refuses "mallory"; keeps every event and every name it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[AdapterEvent] = []
        self.asked: list[str] = []

    def authorize(self, principal: str | None, adapter_name: str) -> bool:
        self.asked.append(adapter_name)
        return principal != "mallory"

    def adapter_event(self, event: AdapterEvent) -> None:
        self.events.append(event)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def hooks() -> RecordingHooks:
    return RecordingHooks()


@pytest.fixture
def resolver() -> TableResolver:
    return TableResolver({"sql": "/adapters/sql", "team/json": "/adapters/team/json"})


@pytest.fixture
async def registry(
    engine: FakeEngine, hooks: RecordingHooks, resolver: TableResolver
) -> AsyncIterator[AdapterRegistry]:
    chain = ResolverChain([active(resolver)])
    registry = AdapterRegistry(["base", "alias"], chain, engine.load, engine.unload, hooks)
    yield registry
    engine.gate.set()
    await registry.close()
    await chain.close()


async def until(is_true: Callable[[], bool]) -> None:
    """Let the loop run until something has happened on it."""
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110 - it waits for ends of tasks, which set no event
            await asyncio.sleep(0)


def assert_nothing_is_in_flight(registry: AdapterRegistry) -> None:
    assert len(registry._flights) == 0
    assert registry._generations._removals == set()


async def lookup(registry: AdapterRegistry, name: str) -> Any:
    served = await registry.lookup(name)
    assert served is not None
    return served


@pytest.mark.parametrize("name", ["base", "alias"])
async def test_every_served_base_name_is_the_base_model(registry: AdapterRegistry, name: str) -> None:
    assert await registry.lookup(name) is None


async def test_an_unknown_name_is_resolved_loaded_and_served(registry: AdapterRegistry, engine: FakeEngine) -> None:
    before = int(time.time())
    served = await lookup(registry, "sql")
    assert served.lora_request == LoRARequest("sql", 1, "/adapters/sql", digest="digest of /adapters/sql")
    assert (served.parent, served.root, served.origin) == ("base", "/adapters/sql", "resolver")
    assert before <= served.created <= time.time()
    assert engine.loads == [LoRARequest("sql", 1, "/adapters/sql")]


async def test_a_served_adapter_is_not_resolved_again(registry: AdapterRegistry, resolver: TableResolver) -> None:
    assert await registry.lookup("sql") is await registry.lookup("sql")
    assert resolver.asked == ["sql"]


async def test_ids_are_the_servers_own_and_count_from_one(registry: AdapterRegistry) -> None:
    await registry.add("static", "/static", origin="static")
    await registry.lookup("sql")
    await registry.lookup("team/json")
    assert [(served.lora_request.lora_name, served.lora_request.lora_int_id) for served in registry.adapters()] == [
        ("static", 1),
        ("sql", 2),
        ("team/json", 3),
    ]


async def test_a_name_that_nobody_knows_leaves_nothing_behind(registry: AdapterRegistry, hooks: RecordingHooks) -> None:
    with pytest.raises(AdapterNotFound, match="adapter 'unknown' does not exist"):
        await registry.lookup("unknown")
    assert_nothing_is_in_flight(registry)
    assert registry.adapters() == []
    assert hooks.events == []


async def test_hundreds_of_unknown_names_use_no_memory(
    engine: FakeEngine, resolver: TableResolver, hooks: RecordingHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_calls, "MAX_UNKNOWN_NAMES", 1)
    monkeypatch.setattr(generation_loader, "MAX_TRACES", 1)
    registry = AdapterRegistry(["base"], ResolverChain([active(resolver)]), engine.load, engine.unload, hooks)

    async def ask(first: int, last: int) -> None:
        for number in range(first, last):
            with suppress(AdapterNotFound):
                await registry.lookup(f"unknown/{number}")
        resolver.asked.clear()
        hooks.asked.clear()
        gc.collect()

    await ask(0, 100)
    tracemalloc.start()
    await ask(100, 400)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await registry.close()
    await registry._loader._chain.close()
    assert after < 15_000  # less than one entry of a dict for each of the names


async def test_concurrent_first_requests_share_one_flight(
    registry: AdapterRegistry, engine: FakeEngine, resolver: TableResolver
) -> None:
    served = await asyncio.gather(*(registry.lookup("sql") for _ in range(100)))
    assert {id(adapter) for adapter in served} == {id(served[0])}
    assert (resolver.asked, len(engine.loads)) == (["sql"], 1)
    assert_nothing_is_in_flight(registry)


async def test_callers_who_leave_take_nothing_from_the_others(registry: AdapterRegistry, engine: FakeEngine) -> None:
    engine.gate.clear()
    callers = [asyncio.create_task(registry.lookup("sql")) for _ in range(100)]
    await engine.has_work.wait()
    for caller in callers[::2]:
        caller.cancel()
    engine.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["CancelledError", "ServedAdapter"] * 50
    assert len(engine.loads) == 1
    assert_nothing_is_in_flight(registry)


async def test_the_flight_goes_on_when_every_caller_has_left(registry: AdapterRegistry, engine: FakeEngine) -> None:
    engine.gate.clear()
    caller = asyncio.create_task(registry.lookup("sql"))
    await engine.has_work.wait()
    caller.cancel()
    await asyncio.wait({caller})
    engine.gate.set()
    await until(lambda: len(registry.adapters()) == 1)
    assert [served.root for served in registry.adapters()] == ["/adapters/sql"]


async def test_every_waiter_hears_of_the_failure_and_the_next_request_tries_again(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    engine.invalid.add("/adapters/sql")
    results = await asyncio.gather(*(registry.lookup("sql") for _ in range(5)), return_exceptions=True)
    assert [str(result) for result in results] == ["adapter 'sql': no adapter_config.json"] * 5
    assert_nothing_is_in_flight(registry)
    engine.invalid.clear()
    assert (await lookup(registry, "sql")).root == "/adapters/sql"


async def test_a_failure_nobody_waits_for_is_logged(
    registry: AdapterRegistry, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.invalid.add("/adapters/sql")
    engine.gate.clear()
    caller = asyncio.create_task(registry.lookup("sql"))
    await engine.has_work.wait()
    caller.cancel()
    engine.gate.set()
    await until(lambda: len(registry._flights) == 0)
    assert "adapter not available adapter=sql: adapter 'sql': no adapter_config.json" in caplog.text


@pytest.mark.parametrize(("cause", "has_traceback"), [(RequestInvalid("rank 999"), False), (KeyError("rank"), True)])
async def test_only_a_fault_is_logged_with_a_traceback(
    registry: AdapterRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    cause: Exception,
    has_traceback: bool,
) -> None:
    async def refuse(request: LoRARequest) -> None:
        raise AdapterInvalid(request.lora_name, "rank too high") from cause

    monkeypatch.setattr(registry._loader, "_load", refuse)

    with pytest.raises(AdapterInvalid):
        await registry.lookup("sql")

    (record,) = (record for record in caplog.records if "rank too high" in record.getMessage())
    assert bool(record.exc_info) is has_traceback


@pytest.mark.parametrize(
    ("fault", "has_traceback"),
    [(ResolverFailed("the bucket is down", retryable=False), False), (KeyError("a bug"), True)],
)
async def test_an_outage_is_logged_in_one_line_and_a_plugins_bug_with_its_traceback(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, fault: Exception, has_traceback: bool
) -> None:
    class Faulty(TableResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            try:
                raise ConnectionRefusedError("connect")
            except ConnectionRefusedError as exc:
                raise fault from exc

    chain = ResolverChain([active(Faulty())])
    registry = AdapterRegistry(["base"], chain, engine.load, engine.unload)
    with pytest.raises(ResolverFailed):
        await registry.lookup("sql")
    await registry.close()
    await chain.close()

    (record,) = caplog.records
    assert bool(record.exc_info) is has_traceback


async def test_more_names_in_flight_than_the_limit_are_turned_away(
    registry: AdapterRegistry, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_FLIGHTS", 1)
    engine.gate.clear()
    caller = asyncio.create_task(registry.lookup("sql"))
    await engine.has_work.wait()
    with pytest.raises(EngineOverloaded, match="1 adapters are being loaded already"):
        await registry.lookup("team/json")
    engine.gate.set()
    await caller
    assert (await lookup(registry, "team/json")).origin == "resolver"


async def test_requests_in_flight_never_keep_the_operator_from_adding(
    registry: AdapterRegistry, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_FLIGHTS", 1)
    engine.gate.clear()
    caller = asyncio.create_task(registry.lookup("sql"))
    await engine.has_work.wait()
    adding = asyncio.create_task(registry.add("mine", "/mine"))
    await asyncio.sleep(0)
    engine.gate.set()
    assert (await adding).root == "/mine"
    await caller


async def test_names_that_fail_the_grammar_reach_neither_hook_nor_resolver(
    registry: AdapterRegistry, resolver: TableResolver, hooks: RecordingHooks
) -> None:
    with pytest.raises(AdapterNotFound):
        await registry.lookup("../secret")
    assert hooks.asked == resolver.asked == []


@pytest.mark.parametrize("name", ["sql", "static"])
async def test_who_may_not_use_an_adapter_is_told_that_it_does_not_exist(
    registry: AdapterRegistry, resolver: TableResolver, name: str
) -> None:
    await registry.add("static", "/static")
    with pytest.raises(AdapterNotFound, match=f"adapter '{name}' does not exist"):
        await registry.lookup(name, principal="mallory")
    assert resolver.asked == []


async def test_listing_for_a_principal_shows_only_what_it_may_use(registry: AdapterRegistry) -> None:
    served = await registry.add("static", "/static")
    assert [one for one in registry.adapters() if registry.allows("alice", one.name)] == [served]
    assert [one for one in registry.adapters() if registry.allows("mallory", one.name)] == []


@pytest.mark.parametrize(("given", "parent"), [("alias", "alias"), ("unserved", "base"), (None, "base")])
async def test_the_parent_is_the_given_base_if_it_is_served(
    registry: AdapterRegistry, given: str | None, parent: str
) -> None:
    assert (await registry.add("a", "/a", base_model_name=given)).parent == parent


async def test_an_added_name_is_served(registry: AdapterRegistry) -> None:
    added = await registry.add("mine", "relative/path", origin="static")
    assert added.root == "relative/path"
    assert added.origin == "static"
    assert await registry.lookup("mine") is added


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("sql", "adapter_already_loaded", "^The lora adapter 'sql' has already been loaded"),
        ("alias", "adapter_name_reserved", "^The name 'alias' belongs to the base model"),
        ("a/../b", "invalid_value", r"^The adapter name 'a/\.\./b' must be 1 to 255 of"),
    ],
)
async def test_a_name_that_cannot_be_added_is_refused(
    registry: AdapterRegistry, name: str, code: str, message: str
) -> None:
    await registry.lookup("sql")
    with pytest.raises(RequestInvalid, match=message) as refusal:
        await registry.add(name, "/path")
    assert (refusal.value.param, refusal.value.code) == ("lora_name", code)


async def test_of_two_adds_of_one_name_the_second_is_refused(registry: AdapterRegistry) -> None:
    results = await asyncio.gather(registry.add("a", "/1"), registry.add("a", "/2"), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ServedAdapter", "RequestInvalid"]
    assert [served.root for served in registry.adapters()] == ["/1"]


async def test_a_request_during_an_add_gets_what_was_added(registry: AdapterRegistry, resolver: TableResolver) -> None:
    added, found = await asyncio.gather(registry.add("sql", "/mine"), registry.lookup("sql"))
    assert found is added
    assert resolver.asked == []


async def test_a_request_during_an_add_that_fails_is_resolved_on_its_own(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    engine.invalid.add("/mine")
    added, found = await asyncio.gather(registry.add("sql", "/mine"), registry.lookup("sql"), return_exceptions=True)
    assert isinstance(added, AdapterInvalid)
    assert getattr(found, "root", found) == "/adapters/sql"


@pytest.mark.parametrize("by", [{"name": "sql"}, {"lora_int_id": 1}, {"name": "sql", "lora_int_id": 1}])
async def test_an_adapter_is_removed_by_name_or_by_id(
    registry: AdapterRegistry, engine: FakeEngine, by: dict[str, Any]
) -> None:
    served = await registry.lookup("sql")
    assert await registry.remove(**by) is served
    assert registry.adapters() == []
    assert engine.unloads == [1]
    assert registry._generations._by_id == {}


@pytest.mark.parametrize(
    "by", [{"name": "other"}, {"lora_int_id": 2}, {"lora_int_id": 0}, {"name": "sql", "lora_int_id": 2}]
)
async def test_removing_what_is_not_served_is_not_found(
    registry: AdapterRegistry, engine: FakeEngine, by: dict[str, Any]
) -> None:
    await registry.lookup("sql")
    with pytest.raises(AdapterNotFound):
        await registry.remove(**by)
    assert engine.unloads == []


async def test_removing_nothing_in_particular_is_refused(registry: AdapterRegistry) -> None:
    with pytest.raises(RequestInvalid, match="Either 'lora_name' or 'lora_int_id'") as refusal:
        await registry.remove()
    assert refusal.value.code == "missing_required_parameter"


async def test_a_removed_adapter_that_a_resolver_knows_loads_again_under_a_new_id(registry: AdapterRegistry) -> None:
    await registry.lookup("sql")
    await registry.remove("sql")
    assert (await lookup(registry, "sql")).lora_request.lora_int_id == 2


async def test_a_removed_adapter_that_was_added_by_hand_is_unknown(registry: AdapterRegistry) -> None:
    await registry.add("mine", "/mine")
    await registry.remove("mine")
    with pytest.raises(AdapterNotFound):
        await registry.lookup("mine")


async def test_an_unload_goes_through_although_its_caller_leaves(
    registry: AdapterRegistry, engine: FakeEngine, hooks: RecordingHooks
) -> None:
    await registry.lookup("sql")
    engine.gate.clear()
    caller = asyncio.create_task(registry.remove("sql"))
    await until(lambda: engine.unloads == [1])
    caller.cancel()
    await asyncio.wait({caller})
    engine.gate.set()
    await until(lambda: not registry._generations._removals)
    assert hooks.events[-1].kind == "unloaded"


async def test_an_evicted_adapter_is_loaded_again_once_and_stays_what_it_was(
    registry: AdapterRegistry, engine: FakeEngine, resolver: TableResolver
) -> None:
    served = await registry.lookup("sql")
    registry.notify_evicted(1)
    found = await asyncio.gather(*(registry.lookup("sql") for _ in range(100)))
    assert all(adapter is served for adapter in [*found, await registry.lookup("sql")])
    assert (len(engine.loads), resolver.asked, engine.unloads) == (2, ["sql"], [])


async def test_an_adapter_that_is_gone_after_its_eviction_is_not_found_and_not_listed(
    registry: AdapterRegistry, engine: FakeEngine, resolver: TableResolver, hooks: RecordingHooks
) -> None:
    await registry.lookup("sql")
    registry.notify_evicted(1)
    engine.invalid.add(resolver.folders.pop("sql"))
    results = await asyncio.gather(*(registry.lookup("sql") for _ in range(100)), return_exceptions=True)
    assert {str(result) for result in results} == {"adapter 'sql' does not exist"}
    assert registry.adapters() == []
    assert (len(engine.loads), engine.unloads, resolver.asked) == (2, [1], ["sql", "sql"])
    assert [event.kind for event in hooks.events] == ["resolved", "loaded", "evicted", "failed", "unloaded"]
    assert_nothing_is_in_flight(registry)


async def test_an_adapter_that_changed_place_after_its_eviction_is_served_under_a_new_id(
    registry: AdapterRegistry, engine: FakeEngine, resolver: TableResolver
) -> None:
    await registry.lookup("sql")
    registry.notify_evicted(1)
    engine.invalid.add("/adapters/sql")
    resolver.folders["sql"] = "/adapters/sql-2"
    found = await asyncio.gather(*(registry.lookup("sql") for _ in range(100)))
    assert {adapter.lora_request for adapter in found if adapter} == {
        LoRARequest("sql", 2, "/adapters/sql-2", digest="digest of /adapters/sql-2")
    }
    assert (len(engine.loads), set(registry._generations._by_id)) == (3, {2})


async def test_an_adapter_that_is_broken_after_its_eviction_says_so_until_it_is_repaired(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    await registry.lookup("sql")
    registry.notify_evicted(1)
    engine.invalid.add("/adapters/sql")
    with pytest.raises(AdapterInvalid):
        await registry.lookup("sql")
    assert registry.adapters() == []
    engine.invalid.clear()
    assert (await lookup(registry, "sql")).root == "/adapters/sql"


async def test_an_evicted_adapter_that_was_added_by_hand_is_read_again_from_where_it_was(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    served = await registry.add("mine", "/mine")
    registry.notify_evicted(1)
    assert await registry.lookup("mine") is served
    assert (len(engine.loads), engine.unloads) == (2, [])


async def test_files_that_changed_while_evicted_are_a_new_generation(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    await registry.add("mine", "/mine")
    registry.notify_evicted(1)
    engine.contents["/mine"] = "new digest"
    found = await asyncio.gather(*(lookup(registry, "mine") for _ in range(10)))
    assert {(served.id, served.digest, served.origin) for served in found} == {(2, "new digest", "api")}
    assert engine.unloads == [1]


async def test_an_adapter_added_by_hand_that_is_broken_when_read_again_stays_and_heals(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    await registry.add("mine", "/mine")
    registry.notify_evicted(1)
    engine.invalid.add("/mine")
    with pytest.raises(AdapterInvalid):
        await registry.lookup("mine")
    assert [served.name for served in registry.adapters()] == ["mine"]
    engine.invalid.clear()
    assert (await lookup(registry, "mine")).id == 1


async def test_an_adapter_removed_while_it_is_loaded_again_is_resolved_anew(
    registry: AdapterRegistry, engine: FakeEngine
) -> None:
    await registry.lookup("sql")
    registry.notify_evicted(1)
    engine.gate.clear()
    caller = asyncio.create_task(lookup(registry, "sql"))
    await until(lambda: len(engine.loads) == 2)
    removal = asyncio.create_task(registry.remove("sql"))
    await until(lambda: engine.unloads == [1])
    engine.gate.set()
    assert (await caller).lora_request.lora_int_id == 2
    await removal
    assert set(registry._generations._by_id) == {2}


async def test_evicted_adapters_are_served_although_too_many_names_are_in_flight(
    registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await registry.lookup("sql")
    registry.notify_evicted(1)
    monkeypatch.setattr(arrivals, "MAX_FLIGHTS", 0)
    assert await registry.lookup("sql") is served


async def test_plugins_hear_of_every_step_in_the_life_of_an_adapter(
    registry: AdapterRegistry, hooks: RecordingHooks
) -> None:
    await registry.lookup("sql")
    registry.notify_evicted(1)
    registry.notify_evicted(7)  # not served: nothing to tell
    await registry.remove("sql")
    kinds = ("resolved", "loaded", "evicted", "unloaded")
    digests = (None, *["digest of /adapters/sql"] * 3)  # known once its files were read
    assert [dataclasses.replace(event, seconds=None) for event in hooks.events] == [
        AdapterEvent(kind, "sql", 1, "/adapters/sql", digest=digest)  # type: ignore[arg-type]
        for kind, digest in zip(kinds, digests, strict=True)
    ]
    assert [event.kind for event in hooks.events if event.seconds is not None] == ["loaded"]


async def test_plugins_hear_why_an_adapter_could_not_be_loaded(
    registry: AdapterRegistry, engine: FakeEngine, hooks: RecordingHooks
) -> None:
    engine.invalid.add("/mine")
    with pytest.raises(AdapterInvalid):
        await registry.add("mine", "/mine")
    assert hooks.events == [AdapterEvent("failed", "mine", 1, "/mine", "adapter 'mine': no adapter_config.json")]


async def test_plugins_hear_why_a_name_could_not_be_resolved(
    registry: AdapterRegistry, resolver: TableResolver, hooks: RecordingHooks
) -> None:
    resolver.allowed_roots = ("/nowhere",)
    with pytest.raises(ResolverFailed):
        await registry.lookup("sql")
    assert [(event.kind, event.adapter_name) for event in hooks.events] == [("failed", "sql")]
    assert "outside its allowed roots" in (hooks.events[0].reason or "")


async def test_close_answers_everybody_who_still_waits(registry: AdapterRegistry, engine: FakeEngine) -> None:
    engine.gate.clear()
    caller = asyncio.create_task(registry.lookup("sql"))
    await engine.has_work.wait()
    await registry.close()
    with pytest.raises(ResolverFailed, match="shutting down"):
        await caller
    assert_nothing_is_in_flight(registry)


async def test_an_error_that_is_not_ours_reaches_the_caller_and_the_log(
    resolver: TableResolver, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(request: LoRARequest) -> None:
        raise ZeroDivisionError("bug")

    async def unload(lora_int_id: int) -> None: ...

    caplog.set_level(logging.ERROR)
    chain = ResolverChain([active(resolver)])
    with pytest.raises(ZeroDivisionError):
        await AdapterRegistry(["base"], chain, crash, unload).lookup("sql")
    await chain.close()
    assert "adapter failed adapter=sql" in caplog.text
