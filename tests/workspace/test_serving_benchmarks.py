"""The benchmarks of adapters and serving run on the tiny model and count right; their times are not looked at."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from loramux import LoRARequest
from loramux.bench.engine_target import EngineTarget
from tiny_engines import engine_args

BENCHMARKS = Path(__file__).parents[2] / "contrib" / "benchmarks"


@pytest.fixture
def made_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("made_adapters")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return module


@pytest.fixture
def run(made_adapters: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert importlib.import_module(name).main() in (0, 1)  # whether a goal is reached is no matter here
        return capsys.readouterr().out

    return run


def test_adapters_are_made_once_and_differ(made_adapters: ModuleType, tiny_llama: Path) -> None:
    kind = made_adapters.AdapterKind((2, 3))

    folders = made_adapters.ensure_adapters(tiny_llama, 3, kind)
    written = {name: (folder / "adapter_model.safetensors").stat().st_mtime_ns for name, folder in folders.items()}
    more = made_adapters.ensure_adapters(tiny_llama, 4, kind)

    assert list(more) == ["lora-0", "lora-1", "lora-2", "lora-3"]
    assert {name: (more[name] / "adapter_model.safetensors").stat().st_mtime_ns for name in written} == written
    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in more.values()}) == 4
    assert [path.name for path in more["lora-0"].parent.iterdir() if path.name not in more] == []


@pytest.fixture
def target(made_adapters: ModuleType, tiny_llama: Path) -> Iterator[tuple[EngineTarget, list[LoRARequest]]]:
    folders = made_adapters.ensure_adapters(tiny_llama, 12, made_adapters.AdapterKind((4,)))
    adapters = [LoRARequest(name, number, str(folder)) for number, (name, folder) in enumerate(folders.items(), 1)]
    room = {"kv_cache_memory_bytes": 2**22, "max_loras": 6, "max_cpu_loras": 8, "max_num_seqs": 16}
    args = engine_args(tiny_llama, enable_prefix_caching=False, **room)
    target = EngineTarget.start(args, {adapter.lora_name: adapter for adapter in adapters})
    yield target, adapters
    target.close()


def test_many_adapters_answer_right_and_are_counted(target: tuple[EngineTarget, list[LoRARequest]]) -> None:
    many_adapters = importlib.import_module("many_adapters")
    arguments = argparse.Namespace(requests=16, tokens=4, sample=16, loads=2)

    figures = asyncio.run(many_adapters.measure(*target, arguments))

    compared, counts = figures.compared, figures.many.counts
    asked = {result.adapter for result in figures.many.results}
    assert (compared.num_compared, compared.num_wrong) == (16, 0)
    assert compared.num_like_base < 8
    assert set(counts["adapter_loads"]) | {"lora-0"} == asked | {"lora-0"}  # lora-0 was there from the load before
    assert figures.windows.p99_during > 0


def test_a_stream_that_ends_early_ends_the_measurement_of_loads(
    target: tuple[EngineTarget, list[LoRARequest]],
) -> None:
    load_windows = importlib.import_module("load_windows")

    with pytest.raises(ExceptionGroup):
        asyncio.run(load_windows.LoadWindows.measure(target[0], ["unknown"], ["lora-1"]))


def test_http_and_the_engine_give_the_same_number_of_tokens(run: object, tiny_llama: Path) -> None:
    out = run(
        "http_overhead",
        *("--model", str(tiny_llama), "--adapters", "2", "--active", "4", "--idle", "2"),
        *("--rounds", "1", "--tokens", "4", "--prompt-tokens", "3"),
    )

    assert "over HTTP / engine alone, 4 streams of 2 adapters, 2 idle connections" in " ".join(out.split())


def test_a_shared_prefix_is_measured_with_and_without_the_cache(run: object, tiny_llama: Path) -> None:
    out = run("shared_prefix", str(tiny_llama), "--rounds", "1", "--requests", "4", "--prefix", "32", "--own", "4")

    assert "TTFT of 4 requests behind 32 shared tokens, with caching / without" in out


def test_steps_are_timed_with_few_and_with_many_registered(run: object, tiny_llama: Path) -> None:
    out = run("registered_adapters", str(tiny_llama), "--registered", "20", "--tokens", "3")

    assert "time per step, 20 registered / 10" in out


def test_steps_are_timed_for_every_rank_and_number_of_adapters(run: object, tiny_llama: Path) -> None:
    sizes = ("--adapters", "1", "4", "--ranks", "2", "5", "--steps", "1", "--rounds", "1")
    out = run("adapter_growth", str(tiny_llama), *sizes)

    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")][:2] == ["2", "5"]
    assert "R² of a step's time by adapters x rank and rows x rank" in out


def test_what_grows_linearly_lies_on_a_plane_and_nothing_else_does(made_adapters: ModuleType) -> None:
    growth = importlib.import_module("adapter_growth")
    places = [(rank, count) for rank in (8, 16, 32, 64) for count in (1, 2, 4, 8, 16, 32)]

    assert growth.explained({place: 1 + 0.01 * place[0] * place[1] + 0.1 * place[0] for place in places}) > 0.999
    assert growth.explained({place: 1 + (place == (64, 32)) for place in places}) < 0.95


def test_every_part_of_a_step_is_timed(run: object, tiny_llama: Path) -> None:
    out = run("step_overhead", "--model", str(tiny_llama), "--sequences", "2", "--prompt", "4", "--steps", "3")

    assert "2 sequences, 3 decode steps" in out
    parts = ("schedule", "batch inputs", "forward pass", "look for what is not finite", "sample", "tokens to text")
    assert [part for part in parts if f"│ {part} " not in out] == []


def test_lora_is_timed_beside_the_base_product_for_every_group(run: object) -> None:
    out = run("lora_ops", "--layers", "1", "--rounds", "1", "--ranks", "4", "--batches", "8 x 1")

    assert [line.split(" | ")[1] for line in out.splitlines()[3:]] == ["q, k, v", "o", "gate, up", "down", "a layer"]


def test_a_start_is_timed_offline_and_by_a_server(run: object, tiny_llama: Path) -> None:
    out = run("startup", str(tiny_llama), "--rounds", "1")

    parts = ("imports", "weights", "probe", "tokenizer", "engine", "first token", "serve: first completion")
    assert [part for part in parts if f"│ {part} " not in out] == []


def test_every_adapter_is_read_for_its_first_request_alone(target: tuple[EngineTarget, list[LoRARequest]]) -> None:
    cold_adapter = importlib.import_module("cold_adapter")
    counted = target[0].counting()

    results = asyncio.run(cold_adapter.measure(target[0], ["lora-0", "lora-1"], 5))

    assert [result.adapter for result in results] == ["lora-0", "lora-0", "lora-1", "lora-1"]
    assert counted()["adapter_loads"] == {"lora-0": 1, "lora-1": 1}
    assert counted()["num_slot_loads"] == 2
