from __future__ import annotations

import asyncio
import threading

import pytest

from loramux.config import EngineArgs
from loramux.errors import AdapterInvalid, ConfigInvalid
from loramux.lora.plugin_manager import PluginConfig
from loramux.lora.request import LoRARequest
from loramux.lora.resolver_options import ResolverOptions
from loramux.server.startup.config import LoRAModule, ServerConfig
from loramux.server.startup.launch import EvictionRelay, _load_modules, warn


@pytest.mark.parametrize(
    ("enable_lora", "expected"),
    [
        (
            False,
            "without --enable-lora these have no effect: LORAMUX_ALLOW_RUNTIME_LORA_UPDATING, LORAMUX_FILESYSTEM_ROOT",
        ),
        (True, "whoever reaches this server can load and unload adapters"),
    ],
)
def test_variables_about_adapters_are_a_risk_with_lora_and_useless_without(
    caplog: pytest.LogCaptureFixture, enable_lora: bool, expected: str
) -> None:
    environment = {
        "LORAMUX_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "LORAMUX_FILESYSTEM_ROOT": "/srv",
        "LORAMUX_API_KEY": "k",
    }
    options = ResolverOptions.gather(environment=environment)
    engine = EngineArgs(model="m", enable_lora=enable_lora)

    warn(ServerConfig(engine=engine, plugins=PluginConfig(None, options), allow_runtime_updates=True))

    assert expected in caplog.records[0].getMessage()
    assert ("whoever reaches" in caplog.text) == enable_lora


async def test_a_static_adapter_that_cannot_be_served_is_named_as_it_was_given(registry, engine) -> None:
    engine.refusals["sql"] = AdapterInvalid("sql", "it is broken.")

    with pytest.raises(ConfigInvalid, match=r"^--lora-modules sql=/a: it is broken\.$"):
        await _load_modules([LoRAModule("sql", "/a")], registry)


async def test_evictions_reach_the_registry_on_its_own_loop(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, threading.Thread]] = []
    arrived = asyncio.Event()

    def notify(lora_int_id: int) -> None:
        heard.append((lora_int_id, threading.current_thread()))
        arrived.set()

    monkeypatch.setattr(registry, "notify_evicted", notify)
    relay = EvictionRelay()
    relay("evicted", LoRARequest("early", 1, "/a"))
    relay.connect(registry)
    await asyncio.to_thread(relay, "loaded", LoRARequest("sql", 2, "/a"))
    await asyncio.to_thread(relay, "evicted", LoRARequest("sql", 3, "/a"))

    await asyncio.wait_for(arrived.wait(), 1)
    assert heard == [(3, threading.main_thread())]
