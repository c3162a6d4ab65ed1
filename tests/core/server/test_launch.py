from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from loramux.config import EngineArgs
from loramux.errors import AdapterInvalid, ConfigInvalid
from loramux.lora.plugin_manager import PluginConfig
from loramux.lora.request import LoRARequest
from loramux.lora.resolver_options import ResolverOptions
from loramux.server.config import LoRAModule, ServerConfig
from loramux.server.launch import EvictionRelay, _load_modules, bind, url_of, warn


def test_port_zero_takes_a_free_port_and_the_address_names_it() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        assert port > 0
        assert url_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}"
        assert url_of("::1", listener) == f"http://[::1]:{port}"


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigInvalid, match=rf"cannot listen on --host 127.0.0.1 --port {port}: "):
            bind("127.0.0.1", port)


def test_of_two_servers_on_one_port_the_second_fails_before_either_is_ready() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        with pytest.raises(ConfigInvalid, match=rf"cannot listen on --host 127.0.0.1 --port {port}: "):
            bind("127.0.0.1", port)


def test_a_client_that_comes_early_waits_instead_of_being_refused() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=1):
        accepted, _ = listener.accept()
        accepted.close()


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


def test_a_host_that_is_no_address_of_this_machine_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot listen on --host 192\.0\.2\.1 --port 0: "):
        bind("192.0.2.1", 0)


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
