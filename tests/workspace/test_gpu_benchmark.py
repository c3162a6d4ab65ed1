"""gpu.py without a GPU: it says that there is none, and in its tiny form goes every way and counts right.

The kernels run under Triton's interpreter, which needs a process of its own; times are not looked at.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from loramux import LLMEngine

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "contrib" / "benchmarks"
SHARED_LIMIT = 163 * 1024  # of sm_80; sm_90 has more


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python on arguments from the repository root."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return importlib.import_module("gpu")


@pytest.fixture
def place(gpu: ModuleType, tmp_path: Path) -> Iterator[object]:
    scale = gpu.tiny()
    model = gpu.write_shape(tmp_path / "tiny", scale.model, max_length=gpu.MAX_LENGTH, dtype="float32")
    with gpu.weights_drawn_on("cpu"):
        yield gpu.Place(torch.device("cpu"), model, tmp_path / "adapters", 8)


def test_a_machine_without_a_gpu_is_told_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])

    assert gpu.main() == 2

    assert capsys.readouterr().err == "gpu.py: there is no CUDA device here, so nothing was measured\n"


@pytest.mark.parametrize(
    ("words", "interpreted", "reason"),
    [
        (["--sections", "speed"], "", "invalid choice: 'speed'"),
        (["--layers", "0"], "", "--layers and --rank must be at least 1"),
        (["--tiny", "--device", "cpu"], "", "with TRITON_INTERPRET=1 in the environment"),
        (["--device", "cpu"], "1", "--device cpu goes with --tiny"),
        ([], "1", "TRITON_INTERPRET=1 is set: unset it"),
    ],
)
def test_arguments_are_checked_before_the_device(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    interpreted: str,
    reason: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)

    with pytest.raises(SystemExit) as ended:
        gpu.main()

    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """Whether each goal of the sections with kernels was reached, by its title."""
    sections = ("--sections", "numerics", "ops")
    done = run(str(BENCHMARKS / "gpu.py"), "--tiny", "--device", "cpu", *sections, TRITON_INTERPRET="1")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines() if line.startswith("│")]
    return {row[1]: row[4] for row in rows}


@pytest.mark.slow
def test_ops_and_the_peers_scheme_equal_the_truth_under_the_interpreter(interpreted: dict[str, str]) -> None:
    numerics = {title: reached for title, reached in interpreted.items() if "tolerance" in title or "bits" in title}

    assert set(numerics.values()) == {"yes"}
    assert {title.partition(" in float")[0] for title in numerics} == {
        *("lora_shrink", "lora_expand", "lora_linear", "lora_group", "lora_embedding"),
        *("paged_prefill", "paged_decode", "store_kv"),
        "the peers' shrink + expand",
        "rows whose bits depend on their batch",
    }


@pytest.mark.slow
def test_ops_are_set_beside_their_bytes_and_the_peers_scheme(interpreted: dict[str, str]) -> None:
    assert [title.partition(",")[0] for title in interpreted if title.startswith("LoRA")] == [
        "LoRA op at decode",
        "LoRA ops at decode",
        "LoRA ops at prefill",
    ]


@pytest.mark.slow
def test_the_peers_kernels_compile_ahead_of_time(tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("compile_peers.py"))
    done = run("-W", "error", program, "80", "90", TRITON_CACHE_DIR=str(tmp_path))

    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kernel["adds_atomically"] for kernel in kernels] == [True, False] * 4  # shrink and expand, twice two dtypes
    assert [kernel for kernel in kernels if kernel["shared"] > SHARED_LIMIT or kernel["wgmma"]] == []


def test_every_load_is_timed_with_and_without_lora(gpu: ModuleType, place: object) -> None:
    scale = gpu.tiny()
    measured = gpu.decode(scale, place)

    assert [goal.title for goal in measured.goals] == [
        "decode, batch 1: 1 adapters of rank 8 / base",
        "decode, batch 4: 2 adapters of rank 8 / base",
        "decode, batch 1: base with LoRA enabled / disabled",
        "decode, batch 4: base with LoRA enabled / disabled",
    ]
    assert all(goal.measured > 0 for goal in measured.goals)


def test_a_sequence_that_gets_no_token_in_a_timed_step_ends_the_measurement(gpu: ModuleType, place: object) -> None:
    args = replace(place.engine_args(gpu.tiny(), max_loras=2), max_model_len=16)
    engine = LLMEngine.from_engine_args(args)

    with pytest.raises(RuntimeError, match="0 of 2 sequences got a token"):
        importlib.import_module("on_device.decoding").step_seconds(engine, gpu.DecodeLoad(2), (), 20, 5)

    assert not engine.has_unfinished_requests()


def test_mixed_sequences_decode_on_their_adapters(gpu: ModuleType, place: object) -> None:
    engine = LLMEngine.from_engine_args(place.engine_args(gpu.tiny(), max_loras=2))
    adapters = place.adapters(2)
    used: set[int] = set()
    execute = engine.runner.execute
    engine.runner.execute = lambda batch, rows: [used.update(s.slot for s in batch.sequences), execute(batch, rows)][1]

    importlib.import_module("on_device.decoding").step_seconds(engine, gpu.DecodeLoad(4, 2), adapters, 2, 5)

    assert used == {0, 1}


def test_cold_adapters_are_read_once_while_streams_run(gpu: ModuleType, place: object) -> None:
    measured = gpu.loads(gpu.tiny(), place)

    assert measured.figures.startswith("4 adapters read, 4 put into slots")  # two of the streams, two cold ones
    assert [goal.title for goal in measured.goals] == ["p99 between tokens of other streams during a load / median"]
