"""Adapters to measure with: PEFT says what one of every rank is made of, the weights are random.

They are kept below `~/.cache/loramux/benchmark-adapters`, so that the next run finds them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CACHE = Path.home() / ".cache" / "loramux" / "benchmark-adapters"
ATTENTION = ("q_proj", "v_proj")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DELTA_SHARE = 0.35
"""How large an adapter's part of an output is, beside its input; enough that most adapters change the next tokens."""


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """Adapter number i has `ranks[i % len(ranks)]`; all target the same modules."""

    ranks: Sequence[int]
    targets: Sequence[str] = ATTENTION

    def rank(self, number: int) -> int:
        return self.ranks[number % len(self.ranks)]


def ensure_adapters(model: Path, number: int, kind: AdapterKind, *, cache: Path | None = None) -> dict[str, Path]:
    """Return name → folder of so many adapters for a model, and make those that are not there; in float16.

    Of the model its `config.json` is read, and nothing else.
    """
    config = (model / "config.json").read_bytes()
    key = hashlib.sha256(config + repr((tuple(kind.ranks), tuple(kind.targets))).encode()).hexdigest()[:12]
    root = (cache or CACHE) / f"{model.name}-{key}"
    folders = {f"lora-{index}": root / f"lora-{index}" for index in range(number)}
    missing = [index for index, folder in enumerate(folders.values()) if not folder.is_dir()]
    if missing:
        root.mkdir(parents=True, exist_ok=True)
        templates = _templates(model, {kind.rank(index) for index in missing}, kind.targets)
        for index in missing:
            templates[kind.rank(index)].write(root / f"lora-{index}", seed=index)
    return folders


@dataclass(frozen=True, slots=True)
class _Template:
    """What PEFT makes for one rank: its configuration, and the shape of every weight."""

    config: Any
    shapes: Mapping[str, torch.Size]

    def write(self, folder: Path, *, seed: int) -> None:
        """Write an adapter of these shapes; the folder appears when it is complete."""
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in self.shapes.items():
            deviation = shape[1] ** -0.5 if "lora_A" in name else DELTA_SHARE * min(shape) ** -0.5
            weights[name] = torch.randn(shape, generator=generator).mul_(deviation).half()
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self.config.save_pretrained(str(partial))
        save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        partial.rename(folder)


def _templates(model: Path, ranks: set[int], targets: Sequence[str]) -> dict[int, _Template]:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict  # seconds of imports, needed once per cache
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))  # type: ignore[no-untyped-call]
        templates = {}
        for rank in sorted(ranks):
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), task_type="CAUSAL_LM")
            adapted = get_peft_model(base, config)
            shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(adapted).items()}
            templates[rank] = _Template(adapted.peft_config["default"], shapes)
            adapted.unload()  # which gives its modules back to `base`
    return templates
