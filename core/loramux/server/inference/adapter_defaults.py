"""What an adapter brings beside its weights, where the operator allows it: a chat template and generation defaults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from loramux.adapters.adapter_files import read_texts
from loramux.adapters.refusal import Refusal
from loramux.adapters.served_adapter import ServedAdapter
from loramux.errors import AdapterInvalid, RequestInvalid
from loramux.lora.remote import (
    CHAT_TEMPLATE_NAME,
    DEFAULTS_FILE_NAMES,
    GENERATION_CONFIG_NAME,
    MAX_DEFAULTS_NBYTES,
)
from loramux.sampling_params import SamplingParams

_TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class AdapterDefaults:
    """What a request to this adapter means where it says nothing; `sampling` has SamplingParams' names."""

    chat_template: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


class DefaultsCache:
    """The defaults of generations, read once each. Belongs to the event loop; files are read off it."""

    def __init__(self, size: int = 1024) -> None:
        self._read: LRUCache[tuple[int, str], AdapterDefaults] = LRUCache(size)

    async def get(self, served: ServedAdapter) -> AdapterDefaults:
        """Return what this generation brings; raises AdapterInvalid for files that cannot be used."""
        key = (served.id, served.revision)  # a newer version of the same content may bring others
        defaults = self._read.get(key)
        if defaults is None:
            defaults = self._read[key] = await asyncio.to_thread(read_defaults, served)
        return defaults


@contextmanager
def naming_defaults(defaults: AdapterDefaults) -> Iterator[None]:
    """Say that the adapter's own defaults count, where a request that is right by itself goes against them."""
    try:
        yield
    except RequestInvalid as exc:
        if not defaults.sampling:
            raise
        reason = f"{exc} (the adapter's {GENERATION_CONFIG_NAME} gives {', '.join(sorted(defaults.sampling))})"
        raise RequestInvalid(reason, param=exc.param, code=exc.code) from exc


async def defaults_of(served: ServedAdapter | None, cache: DefaultsCache | None) -> AdapterDefaults:
    """Return what the adapter brings: nothing for the base model, or where the operator has not allowed it."""
    if served is None or cache is None:
        return AdapterDefaults()
    return await cache.get(served)


def read_defaults(served: ServedAdapter) -> AdapterDefaults:
    """Read what was fetched with the adapter, or lies in its folder. Raises AdapterInvalid, which names the fault."""
    texts = _texts_in_folder(served) if served.defaults is None else served.defaults
    generation = texts.get(GENERATION_CONFIG_NAME)
    return AdapterDefaults(
        texts.get(CHAT_TEMPLATE_NAME), {} if generation is None else _sampling(served.name, generation)
    )


def _texts_in_folder(served: ServedAdapter) -> Mapping[str, str]:
    request = served.lora_request
    root = None if request.allowed_root is None else Path(request.allowed_root)
    folder = Path(request.lora_path).expanduser()
    try:
        return read_texts(folder, DEFAULTS_FILE_NAMES, allowed_root=root, most_nbytes=MAX_DEFAULTS_NBYTES)
    except Refusal as refusal:
        raise AdapterInvalid(served.name, refusal.reason, may_heal=refusal.may_heal) from refusal


def _sampling(name: str, text: str) -> dict[str, Any]:
    """Bring transformers' names to ours; a value that no request could have is refused like there."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise AdapterInvalid(name, f"its {GENERATION_CONFIG_NAME} is not valid JSON") from exc
    if not isinstance(config, dict):
        raise AdapterInvalid(name, f"its {GENERATION_CONFIG_NAME} must hold an object")
    sampling = {key: config[key] for key in _TAKEN if config.get(key) is not None}
    if config.get("do_sample") is False:
        sampling["temperature"] = 0.0
    if config.get("max_new_tokens") is not None:
        sampling["max_tokens"] = config["max_new_tokens"]
    ends = config.get("eos_token_id")
    if ends is not None:
        sampling["stop_token_ids"] = ends if isinstance(ends, list) else [ends]
    try:
        SamplingParams(**sampling)
    except RequestInvalid as exc:
        raise AdapterInvalid(name, f"its {GENERATION_CONFIG_NAME} is refused: {exc}") from exc
    return sampling
