"""Fixtures shared by all tests: a tiny model and a maker of adapters for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test reaches for a network

import pytest
import torch

from tiny_models import build_adapter, build_model

torch.set_num_threads(1)  # tiny tensors: more threads only get in each other's way


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer, as a safetensors folder."""
    return build_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def make_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make (once per name) an adapter for `tiny_llama`: `make_adapter("sql", rank=8, seed=1)` returns its folder."""
    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, **options: object) -> Path:
        folder = root / name
        return folder if folder.exists() else build_adapter(tiny_llama, folder, **options)

    return make
