"""Whatever bytes a folder holds, read_adapter answers with an adapter or with AdapterInvalid."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from loramux.adapters.weights import AdapterWeights
from loramux.errors import AdapterInvalid

MOST_SECONDS = 5.0  # no input may hang the reader

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["change", "insert", "delete", "truncate", "digit"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, mutations: list[tuple[str, float, bytes]], reach: int) -> bytes:
    """Apply the mutations within the first `reach` bytes, where the structure is."""
    for kind, where, new in mutations:
        place = int(where * min(reach, len(content)))
        match kind:
            case "change":
                content = content[:place] + new + content[place + len(new) :]
            case "insert":
                content = content[:place] + new + content[place:]
            case "delete":
                content = content[:place] + content[place + len(new) :]
            case "truncate":
                content = content[:place]
            case "digit":  # keep the JSON whole and change a number in it
                digits = [at for at in range(place, len(content[:reach])) if content[at : at + 1].isdigit()]
                if digits:
                    content = content[: digits[0]] + b"%d" % (new[0] % 10) + content[digits[0] + 1 :]
    return content


def check(base: Any, original: Path, folder: Path, mutated: Mutated) -> None:
    """Read the mutated adapter: a refusal in a few words, or exactly what PEFT would make of the same bytes."""
    hasher = hashlib.sha256()
    for name, mutations in (("adapter_config.json", mutated.config), ("adapter_model.safetensors", mutated.weights)):
        content = (original / name).read_bytes()
        content = mutate(content, mutations, reach=len(content) if mutated.anywhere else 1500)
        (folder / name).write_bytes(content)
        hasher.update(len(content).to_bytes(8, "little") + content)
    began = time.perf_counter()
    try:
        result = base.read(folder)
    except AdapterInvalid as refused:
        assert refused.code in AdapterInvalid.ADAPTER_CODES
        assert len(str(refused)) < 2000
        assert str(folder) not in str(refused)
    else:
        assert result.digest == hasher.hexdigest()
        assert_is_what_peft_reads(result, folder)
    assert time.perf_counter() - began < MOST_SECONDS


def assert_is_what_peft_reads(result: AdapterWeights, folder: Path) -> None:
    """Hold an accepted adapter against safetensors' own reader and PEFT's own rules for rank and scaling."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    read: set[str] = set()
    for path, pair in result.modules.items():
        for tensor, part in ((pair.a, "A"), (pair.b, "B")):
            (name,) = (name for name in tensors if f".{path}.lora_{part}." in f".{name}")
            assert tensor.isfinite().all() and torch.equal(tensor, tensors[name])
            read.add(name)
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), path), config.get("r", 8))
        alpha = alphas.get(get_pattern_key(alphas.keys(), path), config.get("lora_alpha", 8))
        assert pair.rank == rank
        assert pair.scaling == pytest.approx(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    assert read == set(tensors), "every tensor of the file has a meaning"
    assert config["peft_type"] == "LORA"
    assert not config.get("use_dora") and not config.get("lora_bias") and not config.get("modules_to_save")


@dataclass(frozen=True)
class Mutated:
    """What was done to both files, within their first bytes or anywhere."""

    config: list[tuple[str, float, bytes]]
    weights: list[tuple[str, float, bytes]]
    anywhere: bool


@pytest.mark.parametrize("num_examples", [300, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_only_adapters_and_refusals_come_out(
    llama_base: Any, _llama_adapter: Path, tmp_path: Path, num_examples: int
) -> None:
    outcomes: list[int] = []

    @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.builds(Mutated, MUTATIONS | st.just([]), MUTATIONS | st.just([]), st.booleans()))
    def campaign(mutated: Mutated) -> None:
        check(llama_base, _llama_adapter, tmp_path, mutated)
        outcomes.append(1)

    campaign()
    assert len(outcomes) >= num_examples * 0.9  # hypothesis may leave out a few duplicates


def test_an_untouched_adapter_comes_out(llama_base: Any, _llama_adapter: Path) -> None:
    """Keeps the campaign above honest: its starting point is sound."""
    assert llama_base.read(_llama_adapter).modules
    with pytest.raises(AdapterInvalid):
        llama_base.read(_llama_adapter / "absent")
