"""Loading the base model: transformers' own definition, from a safetensors folder, a `.gguf` file or a Hub id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid, ModelUnsupported
from loramux.model.attention import ATTENTION_NAME
from loramux.model.device import choose_device
from loramux.model.ends import vocab_size
from loramux.model.host_memory import keep_freed_memory
from loramux.model.threads import use_physical_cores

# These rescale positions by the longest sequence of the whole batch, so a request would depend on its neighbours.
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are: a folder or Hub id, and the file in it when it is one GGUF file."""

    location: str
    gguf_file: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model on its device, and what its configuration says about serving it."""

    model: PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype  # of the KV cache
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_positions: int | None


def locate(model: str) -> ModelSource:
    """Tell a folder, a `.gguf` file and a Hub id apart."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigInvalid(f"model {model!r}: there is no such GGUF file")
        return ModelSource(str(path.parent), path.name)
    if path.is_dir():
        return ModelSource(str(path))
    if model.startswith(("/", "./", "../", "~")):
        raise ConfigInvalid(f"model {model!r}: there is no such folder; give a folder, a .gguf file or a Hub id")
    return ModelSource(model)


def load_model(args: EngineArgs) -> LoadedModel:
    """Read the weights; raises ModelUnsupported or ConfigInvalid, naming the model and the reason."""
    source = locate(args.model)
    device = choose_device(args)
    if device.type == "cpu":
        use_physical_cores()
        keep_freed_memory()
    gguf = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    try:
        config = AutoConfig.from_pretrained(source.location, **gguf)
    except (OSError, ValueError) as exc:
        raise ConfigInvalid(f"model {args.model!r} cannot be read: {exc}") from exc
    text_config = config.get_text_config(decoder=True)
    _check_config(args.model, text_config)
    dtype = _choose_dtype(args, text_config, device)
    _check_quantization(args, device, dtype)
    kv_dtype = _choose_kv_dtype(args, device, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=dtype, attn_implementation=ATTENTION_NAME, output_loading_info=True, **gguf
        )
    except KeyError as exc:  # a family that looks its attention up in a table of its own
        raise ModelUnsupported(
            f"model {args.model!r} cannot be served: its attention does not go through the attention interface ({exc})"
        ) from exc
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise ModelUnsupported(f"model {args.model!r} cannot be loaded: {exc}") from exc
    model: PreTrainedModel = loaded[0]
    _check_complete(args.model, loaded[1]["missing_keys"])
    module: nn.Module = model
    module.eval().requires_grad_(False).to(device)
    return LoadedModel(
        model=model,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        eos_token_ids=_eos_token_ids(model),
        vocab_size=vocab_size(model),
        max_positions=_max_positions(text_config),
    )


def check_rope(config: PretrainedConfig, model: str, max_model_len: int) -> None:
    """Refuse position scaling that would let one request's length change another's answer."""
    for parameters in _rope_parameters(config.get_text_config(decoder=True)):
        rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
        limit = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        limit = limit or getattr(config, "max_position_embeddings", None)
        if rope_type in BATCH_DEPENDENT_ROPE and limit is not None and max_model_len > int(limit):
            raise ModelUnsupported(
                f"model {model!r} uses {rope_type!r} rotary scaling, which changes with the longest sequence of a "
                f"batch beyond {limit} tokens; set max_model_len to at most {limit} (it is {max_model_len})"
            )


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _check_complete(model: str, missing: Collection[str]) -> None:
    """Refuse a checkpoint without all its weights: transformers fills the gaps with random numbers and a warning."""
    if missing:
        names = sorted(missing)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ModelUnsupported(f"model {model!r} cannot be loaded: its files lack the weights {shown}")


def _check_config(model: str, config: PretrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelUnsupported(f"model {model!r} is an encoder-decoder; only decoder-only text models are served")


def _choose_dtype(args: EngineArgs, config: PretrainedConfig, device: torch.device) -> torch.dtype:
    if args.dtype != "auto":
        dtype = getattr(torch, args.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    stored = getattr(config, "dtype", None)
    if device.type == "cpu":
        if args.quantization is not None:
            return torch.float32
        is_native = stored is torch.bfloat16 and multiplies_bfloat16(torch.cpu.get_capabilities())
        return torch.bfloat16 if is_native else torch.float32
    return stored if isinstance(stored, torch.dtype) else torch.float16


def multiplies_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Say whether a CPU of these capabilities (torch.cpu.get_capabilities) has instructions for bfloat16 products.

    What it can do decides, not a timing: a server that starts again computes in the same dtype again.
    """
    return any(capabilities.get(name) is True for name in ("amx_bf16", "avx512_bf16"))


def _check_quantization(args: EngineArgs, device: torch.device, dtype: torch.dtype) -> None:
    if args.quantization is not None and (device.type != "cpu" or dtype is not torch.float32):
        raise ConfigInvalid(
            f"quantization {args.quantization!r} works on device cpu in dtype float32, here they are {device.type} and "
            f"{str(dtype).removeprefix('torch.')}: leave it out, or set device and dtype"
        )


def _choose_kv_dtype(args: EngineArgs, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What keys and values are kept in: what attention can read beside the model's rows."""
    chosen = dtype if args.kv_cache_dtype == "auto" else getattr(torch, args.kv_cache_dtype)
    assert isinstance(chosen, torch.dtype)
    is_float32_on_cpu = device.type == "cpu" and dtype is torch.float32 and args.kernels != "triton"
    if chosen is not dtype and not is_float32_on_cpu:
        raise ConfigInvalid(
            f"kv_cache_dtype {args.kv_cache_dtype!r} is for a model that a CPU computes in float32, here device is "
            f"{device.type}, dtype {str(dtype).removeprefix('torch.')} and kernels {args.kernels!r}: "
            "leave it at 'auto', or set those"
        )
    return chosen


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    ids: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        value = getattr(config, "eos_token_id", None) if config is not None else None
        ids.update([value] if isinstance(value, int) else value or [])
    return frozenset(ids)


def _max_positions(config: PretrainedConfig) -> int | None:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
