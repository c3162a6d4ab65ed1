"""loramux: one base model, thousands of LoRA adapters, in one batch.

The names are imported when they are first used: a plugin that needs `loramux.lora` alone never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from loramux.garbage import without_collection

if TYPE_CHECKING:
    from loramux.config import EngineArgs
    from loramux.engine.async_llm_engine import AsyncLLMEngine
    from loramux.engine.llm_engine import LLMEngine
    from loramux.llm import LLM
    from loramux.lora.request import LoRARequest
    from loramux.lora.resolver import LoRAResolver
    from loramux.outputs import CompletionOutput, RequestMetrics, RequestOutput
    from loramux.sampling_params import SamplingParams
    from loramux.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "LLMEngine",
    "LoRARequest",
    "LoRAResolver",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "LLM": "loramux.llm",
    "AsyncLLMEngine": "loramux.engine.async_llm_engine",
    "CompletionOutput": "loramux.outputs",
    "EngineArgs": "loramux.config",
    "LLMEngine": "loramux.engine.llm_engine",
    "LoRARequest": "loramux.lora.request",
    "LoRAResolver": "loramux.lora.resolver",
    "RequestMetrics": "loramux.outputs",
    "RequestOutput": "loramux.outputs",
    "SamplingParams": "loramux.sampling_params",
    "StructuredOutputsParams": "loramux.structured_outputs",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'loramux' has no attribute {name!r}")
    with without_collection():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
