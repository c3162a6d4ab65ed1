"""What an engine's arguments came to, told once at its start."""

from __future__ import annotations

import logging

from loramux.config import EngineArgs, StartupSummary
from loramux.model.runner import ModelRunner

logger = logging.getLogger(__name__)


def summarize(runner: ModelRunner, args: EngineArgs) -> StartupSummary:
    """Say what the runner made of the arguments."""
    num_loras = args.max_loras if args.enable_lora else 0
    kv_tokens = runner.kv_cache.num_blocks * runner.kv_cache.block_size
    return StartupSummary(
        model=args.model,
        device=str(runner.loaded.device),
        dtype=str(runner.loaded.dtype).removeprefix("torch."),
        kv_cache_dtype=str(runner.kv_cache.dtype).removeprefix("torch."),
        quantization=args.quantization,
        max_model_len=runner.max_model_len,
        kv_tokens=kv_tokens,
        kv_bytes=kv_tokens * runner.kv_bytes_per_token,
        max_num_seqs=args.max_num_seqs,
        max_loras=num_loras,
        max_lora_rank=args.max_lora_rank if num_loras else 0,
        max_cpu_loras=args.host_loras if num_loras else 0,
    )


def log_start(summary: StartupSummary) -> None:
    """Log one line of it."""
    logger.info(
        "engine started model=%s device=%s dtype=%s kv_cache_dtype=%s quantization=%s kv_tokens=%d kv_bytes=%d "
        "full_sequences=%d max_model_len=%d max_num_seqs=%d max_loras=%d",
        summary.model,
        summary.device,
        summary.dtype,
        summary.kv_cache_dtype,
        summary.quantization,
        summary.kv_tokens,
        summary.kv_bytes,
        summary.num_full_sequences,
        summary.max_model_len,
        summary.max_num_seqs,
        summary.max_loras,
    )
