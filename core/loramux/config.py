"""What the engine is told at start-up, validated in one place before a weight is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from loramux.errors import ConfigInvalid

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
KVCacheDType = Literal["auto", "float16", "bfloat16"]
DeviceName = Literal["auto", "cpu", "cuda"]
Kernels = Literal["auto", "torch", "triton"]
Quantization = Literal["int8"]
BaseMatch = Literal["exact", "basename", "off"]

LARGEST_MAX_LORA_RANK = 512
LARGEST_BLOCK_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """Everything that shapes an engine; names and meanings are the ones of the field's servers.

    model: a safetensors folder, a `.gguf` file (as text or as a Path) or a Hub id. tokenizer: the same, when it lies
    elsewhere.
    served_model_name: one name or several, read back as a tuple; `base_model_names` has the exact type.
    max_loras: adapter slots on the device, so how many different adapters one batch can hold.
    max_cpu_loras: adapters kept in host memory; more adapters than that in flight take turns.
    max_model_len: most tokens of one sequence, prompt and answer; None = what the model and the KV memory allow.
    max_num_batched_tokens: tokens computed in one step; longer prompts are prefilled in chunks of it.
    dtype: "auto" is the checkpoint's own dtype on a GPU; on a CPU it is float32, but bfloat16 where the checkpoint is
    and the CPU multiplies it natively (AMX, AVX-512 BF16).
    kv_cache_dtype: what keys and values are kept in; "auto" is what the model computes in. A model of float32 on a CPU
    may keep them in 16 bits, rounded: half the memory per token, and half of what attention reads.
    kernels: "auto" is Triton's on a GPU and compiled loops on a CPU; "torch" is the reference in torch's own operators,
    for what Triton cannot serve; "triton" on a CPU needs TRITON_INTERPRET=1 and is for tests. They are the process's.
    quantization: "int8" rounds the weights of linear layers to int8, one scale per output, on a CPU in float32
    (which "auto" then is); all else, adapters too, stays float32. None = weights as they are.
    kv_cache_memory_bytes: memory for KV blocks; None = `memory_utilization` (a share) of what is free after loading.
    base_match: how strictly an adapter's `base_model_name_or_path` must name this base.
    Raises ConfigInvalid, which names the setting, its value and what is accepted.
    """

    model: str
    tokenizer: str | None = None
    served_model_name: str | Sequence[str] = ()
    enable_lora: bool = False
    max_loras: int = 8
    max_lora_rank: int = 64
    max_cpu_loras: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    dtype: DTypeName = "auto"
    kv_cache_dtype: KVCacheDType = "auto"
    quantization: Quantization | None = None
    device: DeviceName = "auto"
    kernels: Kernels = "auto"
    seed: int = 0
    kv_cache_memory_bytes: int | None = None
    memory_utilization: float = 0.25
    block_size: int = 16
    enable_prefix_caching: bool = True
    base_match: BaseMatch = "basename"
    slot_wait_limit: int = field(default=32, metadata={"unit": "steps"})

    def __post_init__(self) -> None:
        for name in ("model", "tokenizer"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        _check_text("model", self.model)
        if self.tokenizer is not None:
            _check_text("tokenizer", self.tokenizer)
        object.__setattr__(self, "served_model_name", _checked_names("served_model_name", self.served_model_name))
        self._check_counts()
        self._check_choices()
        _check_share("memory_utilization", self.memory_utilization)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigInvalid(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence can get a token in each step"
            )
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ConfigInvalid(
                f"max_cpu_loras ({self.max_cpu_loras}) must be >= max_loras ({self.max_loras}): "
                "every adapter in a slot also has its place in host memory"
            )

    @property
    def host_loras(self) -> int:
        """How many adapters host memory keeps."""
        return max(64, self.max_loras) if self.max_cpu_loras is None else self.max_cpu_loras

    @property
    def base_model_names(self) -> tuple[str, ...]:
        """The names under which the base model answers; the first one is the parent of every adapter."""
        names = self.served_model_name
        return names if names and isinstance(names, tuple) else (self.model,)

    def _check_counts(self) -> None:
        _check_int("max_loras", self.max_loras, at_least=1)
        _check_int("max_lora_rank", self.max_lora_rank, at_least=1, at_most=LARGEST_MAX_LORA_RANK)
        _check_int("max_num_seqs", self.max_num_seqs, at_least=1)
        _check_int("max_num_batched_tokens", self.max_num_batched_tokens, at_least=1)
        _check_int("block_size", self.block_size, at_least=1, at_most=LARGEST_BLOCK_SIZE)
        _check_int("seed", self.seed, at_least=0)
        _check_int("slot_wait_limit", self.slot_wait_limit, at_least=1)
        for name in ("max_cpu_loras", "max_model_len", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            if value is not None:
                _check_int(name, value, at_least=1)

    def _check_choices(self) -> None:
        for name in ("enable_lora", "enable_prefix_caching"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigInvalid(f"{name} must be True or False, got {value!r}")
        if self.quantization is not None and self.quantization not in get_args(Quantization):
            raise ConfigInvalid(
                f"quantization must be None or one of {', '.join(get_args(Quantization))}; got {self.quantization!r}"
            )
        choices = {
            "dtype": DTypeName,
            "kv_cache_dtype": KVCacheDType,
            "device": DeviceName,
            "kernels": Kernels,
            "base_match": BaseMatch,
        }
        for name, accepted in choices.items():
            value = getattr(self, name)
            if value not in get_args(accepted):
                raise ConfigInvalid(f"{name} must be one of {', '.join(get_args(accepted))}; got {value!r}")


@dataclass(frozen=True, slots=True)
class StartupSummary:
    """What the engine turned its arguments into, for the start-up screen."""

    model: str
    device: str
    dtype: str
    kv_cache_dtype: str
    quantization: str | None
    max_model_len: int
    kv_tokens: int
    kv_bytes: int
    max_num_seqs: int
    max_loras: int
    max_lora_rank: int
    max_cpu_loras: int

    @property
    def num_full_sequences(self) -> int:
        """How many sequences of the full length fit into KV memory at once."""
        return self.kv_tokens // self.max_model_len


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigInvalid(f"{name} must be a non-empty string, got {value!r}")


def _checked_names(name: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) and one for one in names):
        raise ConfigInvalid(f"{name} must be a non-empty string or a list of non-empty strings, got {value!r}")
    return tuple(names)


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigInvalid(f"{name} must be a number in (0, 1], got {value!r}")


def _check_int(name: str, value: object, *, at_least: int, at_most: int | None = None) -> None:
    accepted = f"an integer of at least {at_least}" + (f" and at most {at_most}" if at_most else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least or (at_most and value > at_most):
        raise ConfigInvalid(f"{name} must be {accepted}, got {value!r}")
