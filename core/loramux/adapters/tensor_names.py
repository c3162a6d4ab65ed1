"""The tensor names that PEFT writes for plain LoRA, read back as (module, part)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_PREFIX = "base_model.model."
# A save strips the adapter's name; files of old versions, and raw state dicts, still have ".default".
_PAIR = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<part>[AB])(?:\.default)?\.weight|embedding_(?P<table>[AB])(?:\.default)?)"
)
_BASE_WEIGHT = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")


@dataclass(frozen=True, slots=True)
class TensorRole:
    """What a tensor is for: half of a module's pair, or the module's own weight as it was when the adapter was saved.

    `is_embedding` tells lora_embedding_A from lora_A.
    """

    module: str
    part: Literal["A", "B", "base"]
    is_embedding: bool


def parse_tensor_name(name: str) -> TensorRole | None:
    """Return the role that the name states, or None for any other name."""
    name = name.removeprefix(_PREFIX)
    if match := _PAIR.fullmatch(name):
        part = match["part"] or match["table"]
        return TensorRole(match["module"], "A" if part == "A" else "B", is_embedding=match["table"] is not None)
    if match := _BASE_WEIGHT.fullmatch(name):
        return TensorRole(match["module"], "base", is_embedding=False)
    return None
