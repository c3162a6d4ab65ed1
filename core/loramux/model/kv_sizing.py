"""How much KV memory an engine takes, and so how long a sequence may be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psutil
import torch

from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.model.kv_cache import LayerShape, bytes_per_token
from loramux.model.loader import LoadedModel

logger = logging.getLogger(__name__)


def size_kv_cache(loaded: LoadedModel, args: EngineArgs, layers: Sequence[LayerShape]) -> tuple[int, int]:
    """Return max_model_len and the number of KV blocks that fit the memory allowed."""
    per_token = bytes_per_token(layers, loaded.kv_dtype)
    allowed = args.kv_cache_memory_bytes
    if allowed is None:
        allowed = int(_free_bytes(loaded.device) * args.memory_utilization)
    num_blocks = allowed // (per_token * args.block_size)
    if num_blocks < 1:
        raise ConfigInvalid(
            f"{allowed} bytes of KV memory hold no block of {args.block_size} tokens of {per_token} bytes each; "
            f"set kv_cache_memory_bytes to at least {per_token * args.block_size}"
        )
    capacity = num_blocks * args.block_size
    limit = loaded.max_positions or capacity
    if args.max_model_len is not None:
        if args.max_model_len > limit:
            raise ConfigInvalid(
                f"max_model_len ({args.max_model_len}) is beyond the model's own limit of {limit} tokens"
            )
        limit = args.max_model_len
    if limit > capacity:
        logger.warning("max_model_len reduced from=%d to=%d reason='what KV memory holds'", limit, capacity)
    max_model_len = min(limit, capacity)
    useful = args.max_num_seqs * -(-max_model_len // args.block_size)
    return max_model_len, min(num_blocks, useful)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
