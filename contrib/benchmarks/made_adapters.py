"""Adapters to measure with: PEFT writes one of every rank, the others are that one with other random weights.

They are kept below `~/.cache/loramux/benchmark-adapters`, so that the next run finds them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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
    """Return name → folder of so many adapters for a model, and make those that are not there; in float16."""
    config = (model / "config.json").read_bytes()
    key = hashlib.sha256(config + repr((tuple(kind.ranks), tuple(kind.targets))).encode()).hexdigest()[:12]
    root = (cache or CACHE) / f"{model.name}-{key}"
    folders = {f"lora-{index}": root / f"lora-{index}" for index in range(number)}
    missing = [index for index, folder in enumerate(folders.values()) if not folder.is_dir()]
    if missing:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            templates = _write_templates(model, Path(scratch), {kind.rank(index) for index in missing}, kind.targets)
            for index in missing:
                _write_like(templates[kind.rank(index)], root / f"lora-{index}", seed=index)
    return folders


def _write_templates(model: Path, scratch: Path, ranks: set[int], targets: Sequence[str]) -> dict[int, Path]:
    from peft import LoraConfig, get_peft_model  # seconds of imports, needed once per cache
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    templates = {}
    for rank in sorted(ranks):
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), task_type="CAUSAL_LM")
        adapted = get_peft_model(base, config)
        templates[rank] = scratch / f"rank-{rank}"
        adapted.save_pretrained(str(templates[rank]))
        adapted.unload()  # which gives its modules back to `base`
    return templates


def _write_like(template: Path, folder: Path, *, seed: int) -> None:
    """Write an adapter of the template's shapes; the folder appears when it is complete."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(template / "adapter_model.safetensors")
    for name, weight in weights.items():
        rank = min(weight.shape)
        deviation = weight.shape[1] ** -0.5 if "lora_A" in name else DELTA_SHARE * rank**-0.5
        weights[name] = torch.randn(weight.shape, generator=generator).mul_(deviation).half()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shutil.copy(template / "adapter_config.json", partial)
    save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    partial.rename(folder)
