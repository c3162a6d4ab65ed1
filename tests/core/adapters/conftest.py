"""Tiny random base models, and adapters for them that the real PEFT trained and saved."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux.adapters.peft_checkpoint import read_adapter
from loramux.adapters.weights import AdapterWeights, BaseModelSpec, LoRATarget
from loramux.errors import AdapterInvalid

VOCAB_SIZE = 96


@dataclass
class TinyBase:
    """A transformers model and what the core would know of it."""

    model: Any
    spec: BaseModelSpec
    reads: list[str] = field(default_factory=list)

    def weight(self, module: str) -> torch.Tensor:
        self.reads.append(module)
        return self.model.get_submodule(module).weight

    def read(self, folder: Path, **changes: Any) -> AdapterWeights:
        options = {"base": self.spec, "max_lora_rank": 64, "base_weight": self.weight} | changes
        return read_adapter("tidy", folder, **options)

    def refusal(self, folder: Path, **changes: Any) -> AdapterInvalid:
        with pytest.raises(AdapterInvalid) as caught:
            self.read(folder, **changes)
        assert str(caught.value) == f"adapter 'tidy': {caught.value.reason}"
        return caught.value


@dataclass
class AdapterFolder:
    """An adapter on disk that a test may spoil."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "adapter_config.json"

    @property
    def weights_file(self) -> Path:
        return self.path / "adapter_model.safetensors"

    def change_config(self, **fields: Any) -> Path:
        config = json.loads(self.config_file.read_text())
        self.config_file.write_text(json.dumps(config | fields))
        return self.path

    def change_tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        from safetensors.torch import load_file, save_file

        tensors = load_file(self.weights_file)
        change(tensors)
        save_file(tensors, self.weights_file)
        return self.path

    def change_header(self, change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> Path:
        content = self.weights_file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        text = json.dumps(header).encode()
        self.weights_file.write_bytes(
            len(text).to_bytes(8, "little") + text + (content[end:] if data is None else data)
        )
        return self.path


def _spec(model: Any, name: str, linear_kinds: dict[str, str]) -> BaseModelSpec:
    targets = {}
    for path, module in model.named_modules():
        kind = "lm_head" if path == "lm_head" else linear_kinds.get(type(module).__name__)
        if kind == "conv1d":
            in_features, out_features = module.weight.shape
        elif kind == "embedding":
            in_features, out_features = module.num_embeddings, module.embedding_dim
        elif kind is not None:
            in_features, out_features = module.in_features, module.out_features
        else:
            continue
        targets[path] = LoRATarget(kind, in_features, out_features)
    unservable = {"model.experts": "its experts are one 3-D parameter; LoRA on them is not supported."}
    return BaseModelSpec((name, "local/alias"), type(model).__name__, targets, unservable, VOCAB_SIZE)


@pytest.fixture(scope="session")
def llama_base() -> TinyBase:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB_SIZE, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.name_or_path = "acme/tiny-llama"
    return TinyBase(model, _spec(model, "acme/tiny-llama", {"Linear": "linear", "Embedding": "embedding"}))


@pytest.fixture(scope="session")
def gpt2_base() -> TinyBase:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    model.name_or_path = "acme/tiny-gpt2"
    return TinyBase(model, _spec(model, "acme/tiny-gpt2", {"Conv1D": "conv1d", "Embedding": "embedding"}))


def train_adapter(base: TinyBase, **fields: Any) -> Any:
    """Return a PEFT model whose adapter does something: every A and B is random."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base.model), LoraConfig(**({"task_type": "CAUSAL_LM", "r": 4} | fields)))
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., AdapterFolder]:
    """Return a function that lets PEFT train and save an adapter with the given LoraConfig fields."""

    def save(base: TinyBase, **fields: Any) -> AdapterFolder:
        folder = tmp_path / "peft"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_adapter(base, **fields).save_pretrained(folder)
        return AdapterFolder(folder)

    return save


@pytest.fixture(scope="session")
def _llama_adapter(llama_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "tidy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_adapter(llama_base, target_modules=["q_proj", "v_proj"]).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(_llama_adapter: Path, tmp_path: Path) -> AdapterFolder:
    """A sound rank-4 adapter for q_proj and v_proj of the tiny Llama, this test's own copy."""
    return AdapterFolder(Path(shutil.copytree(_llama_adapter, tmp_path / "tidy")))


@pytest.fixture
def train() -> Callable[..., Any]:
    """Return the function that trains an adapter and gives the PEFT model."""
    return train_adapter
