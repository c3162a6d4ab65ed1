"""`loramux bench` from the command line to its figures, on the tiny model: it counts right, and hides nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux.cli import main
from served_engine import ServedEngine
from served_thread import serving_thread

Adapters = Callable[..., Path]


@pytest.fixture
def adapters(make_adapter: Adapters) -> list[str]:
    return [str(make_adapter(f"bench-{number}", rank=4, seed=number)) for number in range(3)]


def measure(path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run the command and read what it wrote."""
    assert main(["bench", *arguments, "--output", str(path / "out.json")]) == status
    document: dict[str, Any] = json.loads((path / "out.json").read_text())
    return document


def offline(model: Path, path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    return measure(path, "offline", str(model), "--kv-cache-memory-bytes", "1MiB", *arguments, status=status)


def test_an_offline_run_counts_requests_tokens_steps_and_loads(
    tiny_llama: Path, tmp_path: Path, adapters: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    document = offline(
        tiny_llama,
        tmp_path,
        *("--adapters", *adapters, "base"),
        *("--num-requests", "8", "--prompt-tokens", "5", "--output-tokens", "4", "--warmup-requests", "0"),
    )

    (run,) = document["runs"]
    assert run["requests_per_adapter"] == {"bench-0": 2, "bench-1": 2, "bench-2": 2, "base": 2}
    assert run["counts"]["adapter_loads"] == {"bench-0": 1, "bench-1": 1, "bench-2": 1}
    assert run["counts"]["num_slot_loads"] == 3
    assert run["counts"]["num_computed_tokens"] == 8 * (5 + 4 - 1)  # the last token is not fed back
    assert (run["summary"]["num_ok"], run["summary"]["num_output_tokens"]) == (8, 32)
    assert {len(request["inter_token_seconds"]) for request in run["requests"]} <= {1, 2, 3}  # a late reader skips some
    assert run["num_adapters"] == 3
    assert document["target"]["device"] == "cpu"
    assert document["environment"]["torch"]
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.split()[:3] == ["adapters", "requests", "not"]
    assert row.split()[:3] == ["3", "8", "0"]


def test_a_sweep_has_one_run_for_every_number_of_adapters(
    tiny_llama: Path, tmp_path: Path, adapters: list[str]
) -> None:
    document = offline(
        tiny_llama,
        tmp_path,
        *("--adapters", *adapters, "--num-adapters", "0,1,3", "--popularity", "uniform"),
        *("--num-requests", "6", "--prompt-tokens", "uniform:2:6", "--output-tokens", "2", "--concurrency", "2"),
        *("--plot", str(tmp_path / "plot.svg")),
    )

    assert [run["num_adapters"] for run in document["runs"]] == [0, 1, 3]
    assert [len(run["requests_per_adapter"]) for run in document["runs"]] == [1, 1, 3]
    assert all(run["counts"]["num_prefix_hit_tokens"] == 0 for run in document["runs"])
    assert (tmp_path / "plot.svg").stat().st_size > 0


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_shared_prefix_is_computed_once_where_there_is_a_prefix_cache(
    tiny_llama: Path, tmp_path: Path, is_cached: bool
) -> None:
    document = offline(
        tiny_llama,
        tmp_path,
        *("--num-requests", "4", "--shared-prefix-tokens", "32", "--prompt-tokens", "4", "--output-tokens", "2"),
        *(() if is_cached else ("--no-prefix-caching",)),
    )

    assert document["runs"][0]["counts"]["num_prefix_hit_tokens"] == (4 * 32 if is_cached else 0)


def test_requests_that_cannot_be_answered_are_counted_named_and_change_the_status(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"prompt": "hello", "max_tokens": 2}\n'
        '{"prompt_tokens": 600, "max_tokens": 3}\n'
        '{"prompt_tokens": 9, "max_tokens": 510}\n'
        '{"prompt": [7, 8], "max_tokens": 3}\n'
    )

    document = offline(tiny_llama, tmp_path, "--replay", str(log), "--concurrency", "1", status=1)

    (run,) = document["runs"]
    summary, out = run["summary"], capsys.readouterr().out
    assert [request["outcome"] for request in run["requests"]] == ["ok", "failed", "wrong_count", "ok"]
    assert (summary["num_failed"], summary["num_wrong_count"], summary["num_output_tokens"]) == (1, 1, 5)
    assert "not ok: 1 x ContextLengthExceeded: This model's maximum context length is 512 tokens." in out
    assert "not ok: 1 x asked for 510 tokens, got 503" in out


def test_a_log_is_replayed_when_it_says_with_the_adapters_that_it_names(
    tiny_llama: Path, tmp_path: Path, adapters: list[str]
) -> None:
    log = tmp_path / "log.jsonl"
    lines = [("a", 0.02), ("base", 0.0), ("b", 0.01)]
    log.write_text(
        "".join(
            json.dumps({"arrival_seconds": seconds, "model": model, "prompt_tokens": 3, "max_tokens": 2}) + "\n"
            for model, seconds in lines
        )
    )

    document = offline(tiny_llama, tmp_path, "--replay", str(log), "--adapters", f"a={adapters[0]}", f"b={adapters[1]}")

    requests = document["runs"][0]["requests"]
    assert [request["adapter"] for request in requests] == [None, "b", "a"]
    assert [round(request["due_seconds"], 6) for request in requests] == [0.0, 0.01, 0.02]
    assert document["load"]["request_rate"] == "as logged"


@pytest.fixture(scope="module")
def served(
    tiny_llama: Path, make_adapter: Adapters, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedEngine]:
    root = tmp_path_factory.mktemp("served-adapters")
    for number in range(2):
        shutil.copytree(make_adapter(f"bench-{number}", rank=4, seed=number), root / f"bench-{number}")
    with serving_thread(tiny_llama, root) as server:
        yield server


def test_a_server_is_asked_for_its_adapters_and_its_base(served: ServedEngine, tmp_path: Path) -> None:
    document = measure(
        tmp_path,
        "serve",
        *("--base-url", served.url, "--adapters", "bench-{0..1}", "base", "--vocab-size", "300"),
        *("--num-requests", "9", "--prompt-tokens", "5", "--output-tokens", "4", "--request-rate", "500"),
    )

    (run,) = document["runs"]
    assert run["requests_per_adapter"] == {"bench-0": 3, "bench-1": 3, "base": 3}
    assert (run["summary"]["num_ok"], run["summary"]["num_output_tokens"]) == (9, 36)
    assert {request["num_prompt_tokens"] for request in run["requests"]} == {5}
    assert document["target"] == {"base_url": served.url, "model": "tiny"}


def test_an_adapter_that_a_server_does_not_know_is_a_failure_that_shows(
    served: ServedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measure(
        tmp_path,
        "serve",
        *("--base-url", f"{served.url}/v1", "--adapters", "base", "nobody", "--vocab-size", "300", "--json"),
        *("--num-requests", "4", "--prompt-tokens", "5", "--output-tokens", "2", "--concurrency", "2"),
        status=1,
    )

    summary = document["runs"][0]["summary"]
    assert (summary["num_ok"], summary["num_failed"]) == (2, 2)
    assert json.loads(capsys.readouterr().out)["runs"] == document["runs"]


def test_a_warm_up_that_fails_ends_the_command(served: ServedEngine, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["bench", "serve", "--base-url", served.url, "--adapters", "nobody", "--vocab-size", "300"])

    assert status == 1
    assert "loramux bench: failed: warm-up: 1 x RequestFailed: 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-requests", "0"], "--num-requests must be at least 1, got 0"),
        (["--concurrency", "0"], "--concurrency must be at least 1, got 0"),
        (["--request-rate", "0"], "--request-rate must be above 0, got 0"),
        (["--request-rate", "nan"], "--request-rate must be above 0, got nan"),
        (["--warmup-requests", "-1"], "--warmup-requests must be at least 0, got -1"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--shared-prefix-tokens", "-1"], "--shared-prefix-tokens must be at least 0, got -1"),
        (["--prompt-tokens", "x"], "--prompt-tokens must be a number of tokens"),
        (["--popularity", "zipf:1"], "--popularity needs --adapters"),
        (["--num-adapters", "1"], "--num-adapters must be numbers from 0 to 0"),
        (["--output", "/nowhere/out.json"], "--output /nowhere/out.json: there is no such folder"),
        (["--plot", "plot.gif"], "--plot must end in .png"),
    ],
)
@pytest.mark.parametrize("target", [["offline", "model"], ["serve", "--base-url", "http://127.0.0.1:9"]])
def test_a_wrong_setting_is_told_before_anything_is_loaded_or_asked(
    target: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *target, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["offline", "model", "--max-loras", "4"], "--max-loras needs --adapters or --enable-lora"),
        (
            ["offline", "model", "--replay", "LOG", "--request-rate", "1"],
            "--replay asks for 'sql': --adapters must say sql=PATH",
        ),
        (["offline", "model", "--adapters", "/nowhere"], "--adapters /nowhere: there is no such folder"),
        (["serve", "--base-url", "http://h", "--replay", "LOG", "--adapters", "a"], "--adapters does not go with"),
        (["serve", "--base-url", "http://h", "--replay", "LOG"], "say --concurrency or --request-rate"),
        (["serve", "--base-url", "http://h", "--replay", "LOG", "--num-requests", "3"], "--num-requests does not go"),
        (["serve", "--base-url", "h"], "--base-url must start with http"),
        (["serve", "--base-url", "http://h", "--vocab-size", "0"], "--vocab-size must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"model": "sql", "prompt": "x", "max_tokens": 1}\n')

    assert main(["bench", *(str(log) if argument == "LOG" else argument for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
