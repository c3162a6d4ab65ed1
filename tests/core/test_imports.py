"""What is imported for what: nobody pays for what they do not use, and nobody pays the collector for imports."""

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = {
    *("torch", "transformers", "numpy", "tokenizers", "safetensors", "llguidance", "sympy", "accelerate"),
    *("aiohttp", "pydantic", "prometheus_client", "rich", "jinja2", "gguf", "peft", "matplotlib", "boto3", "s3fs"),
}
ONLY_FOR_HTTP = {"aiohttp", "pydantic", "prometheus_client"}
NEVER_AT_THE_START = {"gguf", "peft", "matplotlib", "s3fs", "torchvision", "tensorflow", "jax"}


def run(code: str) -> list[Any]:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def imported_by(code: str) -> set[str]:
    return set(run(f"{code}\nimport json, sys; print(json.dumps([name.split('.')[0] for name in sys.modules]))"))


@pytest.mark.parametrize(
    "code",
    [
        "import loramux",
        "from loramux import EngineArgs, LoRARequest, LoRAResolver, RequestOutput, SamplingParams",
        "from loramux.lora.remote import RemoteLoRAResolver",
    ],
)
def test_the_plain_types_import_nothing_heavy(code: str) -> None:
    assert imported_by(code) & HEAVY == set()


@pytest.mark.slow
def test_the_offline_engine_imports_nothing_of_the_server() -> None:
    imported = imported_by("from loramux import LLM")
    assert "torch" in imported
    assert imported & (ONLY_FOR_HTTP | NEVER_AT_THE_START) == set()


@pytest.mark.slow
def test_the_server_imports_nothing_that_only_some_models_or_sources_need() -> None:
    imported = imported_by("import loramux.cli, loramux.server.startup.launch")
    assert "torch" in imported
    assert imported & NEVER_AT_THE_START == set()


@pytest.mark.slow
def test_importing_the_engine_costs_one_collection_at_most() -> None:
    """What is imported stays; looking through all of it a dozen times would be a fifth of the time to import."""
    code = (
        "import gc, json, loramux\n"
        "collections = []\n"
        "gc.callbacks.append(lambda phase, info: collections.append(phase))\n"
        "loramux.LLM\n"
        "print(json.dumps([collections.count('start'), gc.isenabled()]))"
    )
    num_collections, is_on_again = run(code)
    assert num_collections <= 1  # the one that is due when it is over
    assert is_on_again
