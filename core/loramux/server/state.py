"""What the handlers share: the engine, the registry and the settings the server was started with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.registry import AdapterRegistry
from loramux.lora.plugin_hooks import PluginHooks
from loramux.metrics.metrics import Metrics
from loramux.server.auth import ApiKeys
from loramux.server.generation import Engine
from loramux.server.in_flight import InFlight
from loramux.server.limits import Limiter
from loramux.server.vocabulary import Vocabulary


class Tokenizer(Protocol):
    """What the server needs of a tokenizer; all of it may be called from any thread."""

    def encode(self, text: str, add_special_tokens: bool = True, *, context: int | None = None) -> list[int]:
        """Text to tokens; text that can never fit into `context` tokens is refused."""
        ...

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Tokens to text."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **template_arguments: Any) -> list[int]:
        """Messages to the tokens of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """One server; complete once the static adapters are loaded.

    `allowed_lora_roots` limits what the load endpoint may read; None is no limit.
    """

    engine: Engine
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    registry: AdapterRegistry
    base_model_names: tuple[str, ...]
    model_root: str
    max_model_len: int
    created: int
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    allow_runtime_updates: bool = False
    allowed_lora_roots: tuple[Path, ...] | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    limiter: Limiter = field(default_factory=Limiter)
    metrics: Metrics = field(default_factory=Metrics)
    hooks: PluginHooks = field(default_factory=PluginHooks)
    store: DiskStore | None = None


SERVER = web.AppKey("server", Server)
