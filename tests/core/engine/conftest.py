"""Real engines over the tiny Llama, shut down at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramux import LLMEngine
from tiny_engines import Reference, assert_idle, engine_args


@pytest.fixture(scope="session")
def reference(tiny_llama: Path) -> Reference:
    return Reference(tiny_llama)


@pytest.fixture
def make_engine(tiny_llama: Path) -> Iterator[Callable[..., LLMEngine]]:
    engines: list[LLMEngine] = []

    def make(model: Path = tiny_llama, **changes: object) -> LLMEngine:
        engines.append(LLMEngine.from_engine_args(engine_args(model, **changes)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture(scope="module")
def shared_engine(tiny_llama: Path) -> Iterator[LLMEngine]:
    """For tests that leave an engine as they found it."""
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama))
    yield engine
    assert_idle(engine)
    engine.shutdown()
