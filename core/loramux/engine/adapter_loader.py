"""AdapterLoader: how the host cache gets an adapter: read and checked against the base, cast, packed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from loramux.adapters.known_headers import KnownHeaders
from loramux.adapters.packed import PackedAdapter, pack
from loramux.adapters.peft_checkpoint import read_adapter
from loramux.config import EngineArgs
from loramux.errors import AdapterInvalid
from loramux.lora.request import LoRARequest
from loramux.metrics.state import Transition
from loramux.model.runner import ModelRunner

LoadListener = Callable[[Transition, float], None]
"""Hears how many seconds an adapter took from one tier to the next; called from any thread."""

logger = logging.getLogger(__name__)


class AdapterLoader:
    """Runs in the host cache's threads; touches no engine state but the base model's weights, which never change."""

    def __init__(
        self,
        runner: ModelRunner,
        args: EngineArgs,
        *,
        on_event: Callable[[str, LoRARequest], None] | None = None,
        on_load: LoadListener | None = None,
    ) -> None:
        self._base = runner.base
        self._dtype = runner.loaded.dtype
        self._device = runner.loaded.model.device
        self._base_weight = runner.base_weight
        self._max_lora_rank = args.max_lora_rank
        self._base_match = args.base_match
        self._on_event = on_event
        self._on_load = on_load
        self._known_headers = KnownHeaders()

    def load(self, request: LoRARequest) -> PackedAdapter:
        """Read one adapter. Raises AdapterInvalid with the reason."""
        started = time.perf_counter()
        weights = read_adapter(
            request.lora_name,
            Path(request.lora_path).expanduser(),
            base=self._base,
            max_lora_rank=self._max_lora_rank,
            base_match=self._base_match,
            serving_dtype=self._dtype,
            base_weight=self._base_weight,
            allowed_root=None if request.allowed_root is None else Path(request.allowed_root),
            known_headers=self._known_headers,
        )
        if request.digest not in (None, weights.digest):
            raise AdapterInvalid(request.lora_name, "its files have changed since it was found.")
        adapter = pack(weights, self._dtype, self._device)
        seconds = time.perf_counter() - started
        if self._on_load is not None:
            self._on_load("disk_to_host", seconds)
        logger.info(
            "adapter loaded name=%s id=%d digest=%s rank=%d bytes=%d seconds=%.3f",
            request.lora_name,
            request.lora_int_id,
            adapter.digest[:12],
            adapter.max_rank,
            adapter.nbytes,
            seconds,
        )
        return adapter

    def adapter_loaded(self, request: LoRARequest) -> None:
        """Tell whoever listens that an adapter is in host memory."""
        if self._on_event is not None:
            self._on_event("loaded", request)

    def adapter_dropped(self, request: LoRARequest, *, unloaded: bool) -> None:
        """Tell whoever listens that an adapter left host memory."""
        verb = "unloaded" if unloaded else "evicted"
        logger.info("adapter %s name=%s id=%d", verb, request.lora_name, request.lora_int_id)
        if self._on_event is not None:
            self._on_event(verb, request)
