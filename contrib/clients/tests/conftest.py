"""One `loramux serve`, run in the project's environment, for clients that run in another; `make test-clients`."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# before the clients are imported: none of them reaches for a network
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import pytest

from served import Served, serving
from tiny_models import TOOLS_TEMPLATE, build_adapter, build_model, without_white_space

ROOT = Path(__file__).parents[3]
BASE = "SmolLM2-135M-Instruct"
ADAPTERS = {"sql-lora": 4, "org/json-lora": 8, "sentiment-lora:v1": 17}
DOCUMENTED_URL = "http://127.0.0.1:8000"

if importlib.util.find_spec("guidellm") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-clients` runs them, in an environment of their own


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the base model and each adapter lie, by the names under which they are served."""
    root = tmp_path_factory.mktemp("served")
    base = build_model(root / BASE)
    (base / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    targets = ("q_proj", "v_proj", "down_proj")
    adapters = {
        name: build_adapter(base, root / "adapters" / name, rank=rank, seed=rank, targets=targets)
        for name, rank in ADAPTERS.items()
    }
    return {BASE: base, **adapters}


@pytest.fixture(scope="session")
def names() -> tuple[str, ...]:
    """What can be asked for, the base first."""
    return (BASE, *ADAPTERS)


@pytest.fixture(scope="session")
def shaped(folders: dict[str, Path]) -> dict[str, Any]:
    """What a request for JSON of a given shape needs, so that a tiny model comes to its end."""
    return {"max_tokens": 200, "logit_bias": without_white_space(folders[BASE])}


@pytest.fixture(scope="session")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Fewer slots than adapters."""
    with serving(
        str(folders[BASE]),
        *("--served-model-name", BASE),
        *("--enable-lora", "--max-loras", "2"),
        *("--lora-modules", *(f"{name}={folders[name]}" for name in ADAPTERS)),
        *("--kv-cache-memory-bytes", "64MiB"),
        *("--api-key", "test-key"),
        log=tmp_path_factory.mktemp("log") / "log",
        python=os.environ["LORAMUX_PYTHON"],
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")


@pytest.fixture
def snippet(served: Served) -> dict[str, str]:
    """The blocks of docs/clients.md by their headings, with this server's address in them."""
    text = (ROOT / "docs" / "clients.md").read_text().replace(DOCUMENTED_URL, served.url)
    return dict(re.findall(r"^## (.+?)\n.*?```\w+\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE))
