"""A fake Hub on 127.0.0.1, and a user's Hub environment that is not the tester's own."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import httpx

from fake_hub import FakeHub
from hub_cases import TOKEN, Adapters


@pytest.fixture(autouse=True)
def hf_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds the user's token and caches, and has neither yet."""
    for variable in os.environ:
        if variable.startswith(("HF_", "HUGGING")) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    home = tmp_path_factory.mktemp("hf-home")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    for constant, path in {
        "HF_HOME": home,
        "HF_HUB_CACHE": home / "hub",
        "HF_TOKEN_PATH": home / "token",
        "HF_STORED_TOKENS_PATH": home / "stored_tokens",
        "AGENT_HARNESSES_PATH": home / ".agent_harnesses.json",
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, constant, str(path))
    return home


@pytest.fixture(scope="session", autouse=True)
def _one_tls_context_for_all_clients() -> Iterator[None]:
    """Every test makes clients, and each would read all certificates anew, for longer than most else takes."""
    transport = importlib.import_module(f"{httpx.__name__}._transports.default")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "create_ssl_context", functools.cache(transport.create_ssl_context))
        yield


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Return an empty Hub."""
    with FakeHub.running() as hub:
        yield hub


@pytest.fixture
def adapters(hub: FakeHub) -> Adapters:
    """Return a Hub with one adapter, `my-org/sql`."""
    return Adapters(hub)


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """Return where a file may be written that does not exist yet."""
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder / "download"
