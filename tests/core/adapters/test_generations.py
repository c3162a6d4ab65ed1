"""Generations: what is in use stays what it is, new requests get what is newest, and what nobody uses is freed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from loramux.adapters import arrivals
from loramux.adapters.registry import AdapterRegistry, Patience
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.errors import AdapterInvalid, AdapterLoading, AdapterNotFound, RequestInvalid, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.lora.resolver_policy import ResolverPolicy


class Source(LoRAResolver):
    """Folders with revisions; may be out of order."""

    def __init__(self) -> None:
        self.revisions: dict[str, str] = {"sql": "v1"}
        self.failure: Exception | None = None
        self.num_asked = 0

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        self.num_asked += 1
        if self.failure is not None:
            raise self.failure
        revision = self.revisions.get(lora_name)
        return None if revision is None else LoRARequest(lora_name, 1, f"/{lora_name}/{revision}", revision=revision)


class Engine:
    """Content by path; what is loaded and was unloaded, by id."""

    def __init__(self) -> None:
        self.loaded: dict[int, str] = {}
        self.num_loads = 0
        self.contents: dict[str, str] = {}
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, request: LoRARequest) -> LoadedAdapter:
        self.num_loads += 1
        await self.gate.wait()
        if request.lora_path in self.broken:
            raise AdapterInvalid(request.lora_name, "is broken")
        digest = self.contents.get(request.lora_path, f"content of {request.lora_path}")
        self.loaded[request.lora_int_id] = digest
        return LoadedAdapter(digest, 1, 1)

    async def unload(self, lora_int_id: int) -> None:
        del self.loaded[lora_int_id]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make_registry(
    source: Source, engine: Engine, clock: Clock
) -> AsyncIterator[Callable[..., Awaitable[AdapterRegistry]]]:
    async with AsyncExitStack() as stack:

        async def make(**patience: float) -> AdapterRegistry:
            policy = ResolverPolicy(revalidate_seconds=300, unknown_seconds=0)
            chain = ResolverChain([ActiveResolver("source", source, policy)], clock=clock)
            registry = AdapterRegistry(
                ["base"], chain, engine.load, engine.unload, patience=Patience(**patience), clock=clock
            )
            stack.push_async_callback(chain.close)
            stack.push_async_callback(registry.close)
            return registry

        yield make
        engine.gate.set()


@pytest.fixture
async def registry(make_registry: Callable[..., Awaitable[AdapterRegistry]]) -> AdapterRegistry:
    return await make_registry()


async def lookup(registry: AdapterRegistry, name: str = "sql") -> Any:
    served = await registry.lookup(name)
    assert served is not None
    return served


async def refreshed(registry: AdapterRegistry) -> None:
    """Wait for what goes on behind the scenes."""
    await asyncio.gather(*registry._refresher._tasks.values(), *registry._generations._removals)
    await asyncio.gather(*registry._generations._removals)


async def test_a_new_version_takes_over_new_requests_and_the_old_one_ends_when_its_last_request_does(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    async with registry.use("sql") as old:
        assert old is not None
        source.revisions["sql"] = "v2"
        clock.now += 300
        assert await lookup(registry) is old  # whoever asks is not kept waiting
        await refreshed(registry)
        new = await lookup(registry)
        assert (new.id, new.revision, new.digest) == (2, "v2", "content of /sql/v2")
        assert engine.loaded == {1: "content of /sql/v1", 2: "content of /sql/v2"}
    await refreshed(registry)
    assert engine.loaded == {2: "content of /sql/v2"}
    assert [served.id for served in registry.adapters()] == [2]


async def test_the_source_is_not_asked_again_before_its_time(
    registry: AdapterRegistry, source: Source, clock: Clock
) -> None:
    await lookup(registry)
    clock.now += 299
    await lookup(registry)
    assert (source.num_asked, registry._refresher._tasks) == (1, {})


async def test_an_unchanged_version_is_asked_for_and_not_loaded_again(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    served = await lookup(registry)
    clock.now += 300
    await asyncio.gather(*(lookup(registry) for _ in range(50)))
    await refreshed(registry)
    assert await lookup(registry) is served
    assert (source.num_asked, engine.num_loads) == (2, 1)


async def test_a_new_version_with_the_same_content_changes_no_generation(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    await lookup(registry)
    source.revisions["sql"] = "v2"
    engine.contents["/sql/v2"] = "content of /sql/v1"
    clock.now += 300
    await lookup(registry)
    await refreshed(registry)
    served = await lookup(registry)
    assert (served.id, served.revision) == (1, "v2")
    assert engine.loaded == {1: "content of /sql/v1"}


async def test_an_outage_of_the_source_keeps_the_present_version(
    registry: AdapterRegistry, source: Source, clock: Clock
) -> None:
    served = await lookup(registry)
    source.failure = ResolverFailed("403", retryable=False)
    clock.now += 300
    await lookup(registry)
    await refreshed(registry)
    assert await lookup(registry) is served


async def test_a_broken_new_version_keeps_the_present_one_and_is_not_read_twice(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    served = await lookup(registry)
    source.revisions["sql"] = "v2"
    engine.broken.add("/sql/v2")
    for _ in range(3):
        clock.now = registry._generations._by_id[served.id].check_at
        assert await lookup(registry) is served
        await refreshed(registry)
    assert (engine.num_loads, source.num_asked) == (2, 4)
    source.revisions["sql"] = "v3"
    clock.now = registry._generations._by_id[served.id].check_at
    await lookup(registry)
    await refreshed(registry)
    assert (await lookup(registry)).revision == "v3"


async def test_what_its_source_has_given_up_is_not_served_any_more(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    await lookup(registry)
    del source.revisions["sql"]
    clock.now += 300
    await lookup(registry)
    await refreshed(registry)
    assert (registry.adapters(), engine.loaded) == ([], {})
    with pytest.raises(AdapterNotFound):
        await registry.lookup("sql")


async def test_an_unload_waits_for_the_requests_that_use_the_adapter_and_then_frees_it(
    registry: AdapterRegistry, engine: Engine
) -> None:
    async with registry.use("sql"), registry.use("sql"):
        await registry.remove("sql")
        assert (registry.adapters(), list(engine.loaded)) == ([], [1])
        assert (await lookup(registry)).id == 2
    await refreshed(registry)
    assert list(engine.loaded) == [2]
    registry._generations.check_integrity()
    assert set(registry._generations._by_id) == {2}


async def test_replacing_an_adapter_loads_the_new_one_beside_the_old_one(
    registry: AdapterRegistry, engine: Engine
) -> None:
    await registry.add("mine", "/mine/1")
    engine.gate.clear()
    replacing = asyncio.create_task(registry.add("mine", "/mine/2", replaces=True))
    await asyncio.sleep(0)
    assert (await lookup(registry, "mine")).id == 1  # nobody waits for the new one
    engine.gate.set()
    assert (await replacing).id == (await lookup(registry, "mine")).id == 2
    await refreshed(registry)
    assert engine.loaded == {2: "content of /mine/2"}


async def test_a_replacement_that_is_broken_leaves_the_old_one(registry: AdapterRegistry, engine: Engine) -> None:
    served = await registry.add("mine", "/mine/1")
    engine.broken.add("/mine/2")
    with pytest.raises(AdapterInvalid):
        await registry.add("mine", "/mine/2", replaces=True)
    assert await lookup(registry, "mine") is served


async def test_a_request_waits_only_so_long_and_the_work_goes_on(
    make_registry: Callable[..., Awaitable[AdapterRegistry]], engine: Engine, source: Source
) -> None:
    registry = await make_registry(lora_wait_seconds=0.01)
    engine.gate.clear()
    for name in ("sql", "sql"):
        with pytest.raises(AdapterLoading, match="adapter 'sql' is still loading"):
            await registry.lookup(name)
    with pytest.raises(AdapterLoading, match="adapter 'mine' is still loading"):
        await registry.add("mine", "/mine")
    engine.gate.set()
    flights = [registry._flights.get("sql"), registry._flights.get("mine")]
    await asyncio.gather(*(flight.task for flight in flights if flight))
    assert {served.name for served in registry.adapters()} == {"sql", "mine"}
    assert (source.num_asked, engine.num_loads) == (1, 2)


async def test_the_start_waits_for_its_adapters_however_long_they_take(
    make_registry: Callable[..., Awaitable[AdapterRegistry]], engine: Engine
) -> None:
    registry = await make_registry(lora_wait_seconds=0.01)
    engine.gate.clear()
    adding = asyncio.create_task(registry.add("mine", "/mine", origin="static"))
    with pytest.raises(AdapterLoading):
        await registry.add("other", "/other")  # the same time, for a client
    assert not adding.done()
    engine.gate.set()
    assert (await adding).name == "mine"


async def test_a_flight_ends_in_time_whatever_hangs(
    make_registry: Callable[..., Awaitable[AdapterRegistry]], engine: Engine
) -> None:
    registry = await make_registry(flight_seconds=0.01)
    engine.gate.clear()
    with pytest.raises(ResolverFailed, match=r"adapter 'sql' was not there within 0\.01 s"):
        await registry.lookup("sql")
    assert len(registry._flights) == 0


async def test_a_version_known_to_be_invalid_is_not_read_again_until_it_changes(
    registry: AdapterRegistry, source: Source, engine: Engine, clock: Clock
) -> None:
    engine.broken.add("/sql/v1")
    for _ in range(3):
        with pytest.raises(AdapterInvalid, match="is broken"):
            await registry.lookup("sql")
    assert engine.num_loads == 1
    clock.now += 601
    with pytest.raises(AdapterInvalid):
        await registry.lookup("sql")
    assert engine.num_loads == 2
    source.revisions["sql"] = "v2"
    assert (await lookup(registry)).revision == "v2"


async def test_what_was_said_of_a_name_can_be_read_afterwards(registry: AdapterRegistry) -> None:
    await lookup(registry)
    trace = registry.explain("sql")
    assert trace is not None
    assert [(step.resolver, step.verdict) for step in trace.steps] == [("source", "found"), ("engine", "loaded")]
    assert trace.steps[0].reason == "/sql/v1 @ v1"
    with pytest.raises(AdapterNotFound):
        await registry.lookup("unknown")
    unknown = registry.explain("unknown")
    assert unknown is not None
    assert [(step.resolver, step.verdict) for step in unknown.steps] == [("source", "not found")]
    assert registry.explain("never asked") is None


async def test_an_alias_moves_to_a_new_version_and_back(registry: AdapterRegistry, source: Source) -> None:
    source.revisions |= {"sql@v1": "v1", "sql@v2": "v2"}
    assert registry.move_alias("prod", "sql@v1", expected=None) is None
    assert (await lookup(registry, "prod")).name == "sql@v1"
    assert registry.move_alias("prod", "sql@v2", expected="sql@v1") == "sql@v1"
    assert (await lookup(registry, "prod")).name == "sql@v2"
    with pytest.raises(RequestInvalid, match="'prod' stands for 'sql@v2', not for 'sql@v1'") as refusal:
        registry.move_alias("prod", "sql@v3", expected="sql@v1")
    assert refusal.value.code == "alias_conflict"
    registry.move_alias("prod", "sql@v1")
    assert (await lookup(registry, "prod")).name == "sql@v1"
    registry.move_alias("prod", None)
    with pytest.raises(AdapterNotFound, match="'prod'"):
        await registry.lookup("prod")


async def test_an_alias_of_an_unknown_adapter_says_its_own_name(registry: AdapterRegistry) -> None:
    registry.move_alias("prod", "secret/unknown")
    with pytest.raises(AdapterNotFound, match=r"^adapter 'prod' does not exist$"):
        await registry.lookup("prod")


@pytest.mark.parametrize(
    ("alias", "target", "message"),
    [
        ("base", "sql", "belongs to a model"),
        ("sql", "other", "belongs to a model"),
        ("a/../b", "sql", "'alias' is no name for an adapter"),
        ("new", "..", "'target' is no name for an adapter"),
        ("new", "prod", "an alias never stands for another alias"),
        ("new", "new", "an alias never stands for another alias"),
        ("json", "sql", "an alias never stands for another alias"),
    ],
)
async def test_an_alias_that_would_be_ambiguous_is_refused(
    registry: AdapterRegistry, alias: str, target: str, message: str
) -> None:
    await lookup(registry)
    registry.move_alias("prod", "json")
    with pytest.raises(RequestInvalid, match=message):
        registry.move_alias(alias, target)
    assert registry.aliases.items() == {"prod": "json"}


async def test_no_adapter_takes_the_name_of_an_alias(registry: AdapterRegistry) -> None:
    registry.move_alias("prod", "sql")
    with pytest.raises(RequestInvalid, match="The name 'prod' belongs to an alias"):
        await registry.add("prod", "/mine")


async def test_an_alias_may_stand_for_the_base_model(registry: AdapterRegistry) -> None:
    registry.move_alias("default", "base")
    assert await registry.lookup("default") is None


async def test_a_name_that_is_being_loaded_becomes_no_alias(registry: AdapterRegistry, engine: Engine) -> None:
    engine.gate.clear()
    adding = asyncio.create_task(registry.add("mine", "/mine"))
    await asyncio.sleep(0)
    with pytest.raises(RequestInvalid, match="The name 'mine' belongs to a model"):
        registry.move_alias("mine", "sql")
    engine.gate.set()
    assert await lookup(registry, "mine") is await adding


async def test_an_operator_has_a_served_name_looked_for_again_at_once(
    registry: AdapterRegistry, source: Source, engine: Engine
) -> None:
    await lookup(registry)
    source.revisions["sql"] = "v2"
    with pytest.raises(RequestInvalid, match="has already been loaded"):
        await registry.load("sql")
    assert (await registry.load("sql", replaces=True)).revision == "v2"
    assert (await lookup(registry)).id == 2
    assert (await registry.load("sql", replaces=True)).id == 2  # there is nothing newer
    engine.broken.add("/sql/v3")
    source.revisions["sql"] = "v3"
    with pytest.raises(AdapterInvalid):
        await registry.load("sql", replaces=True)
    assert (await lookup(registry)).revision == "v2"


async def test_an_operators_load_forgets_what_was_unknown_or_invalid(
    registry: AdapterRegistry, source: Source, engine: Engine
) -> None:
    engine.broken.add("/sql/v1")
    with pytest.raises(AdapterInvalid):
        await registry.lookup("sql")
    engine.broken.clear()
    with pytest.raises(AdapterInvalid):
        await registry.lookup("sql")
    assert (await registry.load("sql")).revision == "v1"


async def test_an_operators_load_of_what_its_source_has_given_up_ends_it(
    registry: AdapterRegistry, source: Source
) -> None:
    await lookup(registry)
    del source.revisions["sql"]
    with pytest.raises(AdapterNotFound):
        await registry.load("sql", replaces=True)
    assert registry.adapters() == []


async def test_an_adapter_of_a_path_is_read_again_from_there(registry: AdapterRegistry, engine: Engine) -> None:
    await registry.add("mine", "/mine")
    engine.contents["/mine"] = "new content"
    assert (await registry.load("mine", replaces=True)).digest == "new content"


async def test_a_search_that_nobody_waits_for_makes_room_for_others(
    registry: AdapterRegistry, source: Source, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_FLIGHTS", 2)
    source.revisions |= {"a": "v1", "b": "v1"}
    engine.gate.clear()
    left, waiting = (asyncio.create_task(registry.lookup(name)) for name in ("a", "b"))
    async with asyncio.timeout(30):
        while engine.num_loads < 2:  # noqa: ASYNC110 - it happens in other tasks
            await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait({left})
    third = asyncio.create_task(registry.lookup("sql"))
    async with asyncio.timeout(30):
        while engine.num_loads < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(waiting, third)
    assert {served.name for served in registry.adapters()} == {"b", "sql"}
