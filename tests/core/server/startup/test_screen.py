from __future__ import annotations

from dataclasses import replace

import pytest

from loramux.config import EngineArgs, StartupSummary
from loramux.lora.plugin_manager import PluginStatus
from loramux.server.startup.config import LoRAModule, ServerConfig
from loramux.server.startup.screen import StartScreen, show_start

SUMMARY = StartupSummary(
    model="org/llama",
    device="cpu",
    dtype="float32",
    kv_cache_dtype="float32",
    quantization=None,
    max_model_len=2048,
    kv_tokens=65536,
    kv_bytes=3 * 2**30,
    max_num_seqs=64,
    max_loras=8,
    max_lora_rank=64,
    max_cpu_loras=100,
)


def screen(*, enable_lora: bool = True, plugins: tuple[PluginStatus, ...] = ()) -> StartScreen:
    config = ServerConfig(
        engine=EngineArgs(model="org/llama", served_model_name=("llama", "base"), enable_lora=enable_lora),
        lora_modules=(LoRAModule("sql", "/a"),) if enable_lora else (),
    )
    return StartScreen(SUMMARY, config, plugins, "http://127.0.0.1:8000")


def test_the_screen_says_what_fits_and_where_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    show_start(screen())

    assert capsys.readouterr().out.splitlines() == [
        "model      org/llama, served as llama, base",
        "device     cpu, float32",
        "KV cache   65,536 tokens (3.0 GiB): 32 sequences of 2,048 tokens, more if shorter, at most 64 at once",
        "adapters   8 slots, 100 in host memory, rank up to 64; loaded: sql",
        "resolver   none installed",
        "access     open to everybody on this machine",
        "listening  http://127.0.0.1:8000",
    ]


def test_resolvers_are_listed_with_where_they_look_or_why_they_do_not() -> None:
    plugins = (
        PluginStatus("filesystem", "d", "1", is_active=True, looks_in="/adapters"),
        PluginStatus("hub", "d", "1", reason="installed but not configured"),
    )

    lines = [text for _, text in screen(plugins=plugins).lines()]

    assert "filesystem: /adapters" in lines
    assert "hub (inactive: installed but not configured)" in lines


def test_a_server_without_adapters_says_so() -> None:
    lines = dict(screen(enable_lora=False).lines())

    assert lines["adapters"] == "off (--enable-lora turns them on)"
    assert "resolver" not in lines


def test_the_store_is_shown_where_a_resolver_fetches_files() -> None:
    shown = replace(screen(), stored_nbytes=5 * 2**20)

    assert dict(shown.lines())["store"] == "~/.cache/loramux/store: 5.0 MiB, at most 50.0 GiB"
    assert "store" not in dict(screen().lines())
