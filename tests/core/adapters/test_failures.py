from __future__ import annotations

import pytest

from loramux.adapters import failures as failures_module
from loramux.adapters.failures import Failures
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.resolution import Trace
from loramux.adapters.resolver_chain import ResolverChain
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.errors import AdapterInvalid, AdapterLoading, AdapterNotFound, LoramuxError, ResolverFailed, StoreFull
from loramux.lora.plugin_manager import ActiveResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver


def names(failures: Failures) -> list[str]:
    return [failure.adapter_name for failure in failures]


def test_the_latest_comes_first() -> None:
    failures = Failures()
    failures.note("a", ResolverFailed("down"))
    failures.note("b", ResolverFailed("down"))

    assert names(failures) == ["b", "a"]


def test_the_same_trouble_is_counted_and_comes_first_again() -> None:
    times = iter([1.0, 2.0, 3.0])
    failures = Failures(now=lambda: next(times))
    failures.note("a", ResolverFailed("down"))
    failures.note("b", ResolverFailed("down"))
    failures.note("a", ResolverFailed("down"), Trace("a"))

    assert [(failure.adapter_name, failure.count, failure.at) for failure in failures] == [("a", 2, 3.0), ("b", 1, 2.0)]


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures_module, "MAX_FAILURES", 3)
    failures = Failures()
    for name in "abcde":
        failures.note(name, ResolverFailed("down"))

    assert names(failures) == ["e", "d", "c"]


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (AdapterInvalid("a", "is broken"), "invalid", "is broken"),
        (ResolverFailed("is down"), "source failed", "is down"),
        (AdapterLoading("a"), "still loading", "adapter 'a' is still loading"),
        (StoreFull("is full"), "no room", "is full"),
        (LoramuxError("is odd"), "error", "is odd"),
    ],
)
def test_every_trouble_has_a_kind_and_a_reason(error: Exception, kind: str, reason: str) -> None:
    failures = Failures()
    failures.note("a", error)

    assert [(failure.kind, failure.reason) for failure in failures] == [(kind, reason)]


class Shelf(LoRAResolver):
    """Knows what is broken; is down for what is called so."""

    name = "shelf"

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if lora_name == "down":
            raise ResolverFailed("is down")
        return LoRARequest(lora_name, 1, "/broken") if lora_name == "broken" else None


class Engine:
    """Loads nothing that is broken."""

    async def load(self, request: LoRARequest) -> LoadedAdapter:
        if "broken" in request.lora_path:
            raise AdapterInvalid(request.lora_name, "is broken")
        return LoadedAdapter("digest", 1, 1)

    async def unload(self, lora_int_id: int) -> None:
        pass


@pytest.fixture
async def registry():
    chain = ResolverChain([ActiveResolver("shelf", Shelf())])
    registry = AdapterRegistry(["base"], chain, Engine().load, Engine().unload)
    yield registry
    await registry.close()
    await chain.close()


async def test_what_cannot_be_found_or_read_is_kept_with_what_everybody_said(registry: AdapterRegistry) -> None:
    for name, error in (("broken", AdapterInvalid), ("down", ResolverFailed)):
        with pytest.raises(error):
            await registry.lookup(name)

    steps = {
        failure.adapter_name: [(step.resolver, step.verdict) for step in failure.steps]
        for failure in registry.failures()
    }
    assert steps == {
        "broken": [("shelf", "found"), ("engine", "invalid")],
        "down": [("shelf", "failed")],
    }


async def test_what_the_operator_named_himself_was_asked_of_the_engine_alone(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterInvalid):
        await registry.add("mine", "/broken")

    (failure,) = registry.failures()
    assert [(step.resolver, step.verdict, step.reason) for step in failure.steps] == [
        ("engine", "invalid", "is broken")
    ]


async def test_an_unknown_name_is_no_failure(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound):
        await registry.lookup("made-up")

    assert registry.failures() == []
