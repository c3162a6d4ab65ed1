"""An engine computes what it will serve before it serves: then the first request compiles nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from loramux import LLMEngine
from loramux.model import warm_up
from loramux.model.decode_inputs import bucket_sizes
from loramux.server.startup import loading
from replays import Recomputed
from tiny_engines import assert_idle, engine_args
from triton_process import run_interpreted

HERE = Path(__file__).parent


@pytest.mark.slow
def test_serving_after_the_warm_up_compiles_nothing() -> None:
    """Under the interpreter: by the keys under which Triton would keep what it compiles."""
    run_interpreted(HERE / "interpreted_engine.py")


def test_a_bar_tells_how_far_it_is(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(loading, "Console", lambda **_: Console(file=written, force_terminal=True, width=100))
    monkeypatch.setattr(warm_up, "graph_capture", lambda _device: Recomputed)

    with loading.show_loading("tiny"):
        engine = LLMEngine.from_engine_args(engine_args(tiny_llama))
    engine.shutdown()

    num_graphs = 2 * len(bucket_sizes(engine.args.max_num_seqs))
    num_others = 2 * 4
    assert "Warming up" in written.getvalue()
    assert f"/{num_graphs + num_others}" in written.getvalue()


def test_a_warm_up_leaves_nothing_behind(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "graph_capture", lambda _device: Recomputed)

    engine = LLMEngine.from_engine_args(engine_args(tiny_llama))

    cache = engine.runner.kv_cache
    assert not any(tensor[: cache.num_blocks].any() for tensor in (*cache.keys, *cache.values))
    assert engine.runner.num_steps == 0
    assert_idle(engine)
    engine.shutdown()


def test_a_cpu_has_nothing_to_warm_up(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "_compute", pytest.fail)

    engine = LLMEngine.from_engine_args(engine_args(tiny_llama))

    assert engine.runner.graphs is None
    engine.shutdown()
