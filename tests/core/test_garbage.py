"""While imports and models are made, nobody looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loramux import LLMEngine
from loramux.garbage import without_collection
from tiny_engines import engine_args


@contextmanager
def collections() -> Iterator[list[int]]:
    """The generations of the collections that begin meanwhile."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)


def test_nothing_is_collected_meanwhile_and_what_was_made_is_not_looked_at_after() -> None:
    with collections() as seen:
        with without_collection():
            made: list[list[int]] = [[] for _ in range(100_000)]
        assert seen == []
    young = sum(len(gc.get_objects(generation)) for generation in (0, 1))
    assert young < len(made)
    assert gc.isenabled()


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with without_collection():
            pass
        assert gc.get_freeze_count() == pytest.approx(frozen, abs=100)
    finally:
        gc.unfreeze()


def test_an_engine_is_made_without_a_collection(tiny_llama: Path) -> None:
    with collections() as seen:
        engine = LLMEngine(engine_args(tiny_llama))
    assert len(seen) <= 3  # of each generation the one that is due after
    engine.shutdown()
