"""What the handlers share: the engine, the registry and the settings the server was started with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.registry import AdapterRegistry
from loramux.adapters.residency import Residency
from loramux.config import StartupSummary
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.request import LoRARequest
from loramux.metrics.metrics import Metrics
from loramux.metrics.state import EngineState
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.server.access.auth import ApiKeys
from loramux.server.access.limits import Limiter
from loramux.server.in_flight import InFlight
from loramux.server.inference.adapter_defaults import DefaultsCache
from loramux.server.inference.streaming import StreamTimes
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.observing.traffic import Traffic
from loramux.structured_outputs import StructuredOutputsParams


class Engine(Protocol):
    """What the server needs of an engine; AsyncLLMEngine has it."""

    def generate(
        self,
        prompt: list[int],
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        *,
        tenant: str | None = None,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Answer one prompt with cumulative outputs; closing the iterator aborts the request."""
        ...

    async def check_structured_outputs(self, params: StructuredOutputsParams | None) -> None:
        """Compile what an answer is to match, off the event loop; raises RequestInvalid where that is impossible."""
        ...

    def residency(self, lora_int_id: int) -> Residency | None:
        """Say where an adapter rests; None when it is on disk alone."""
        ...

    def residencies(self) -> Mapping[int, Residency]:
        """Say where each adapter in host memory rests, by id."""
        ...

    @property
    def num_waiting(self) -> int:
        """How many sequences and requests have not begun yet."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows; ids are below it."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the engine still answers."""
        ...

    @property
    def seconds_in_step(self) -> float:
        """For how long the engine has been at its present step; 0 while it waits for work."""
        ...

    @property
    def summary(self) -> StartupSummary:
        """What the engine was started with."""
        ...

    def state(self) -> EngineState:
        """What the engine holds now; never waits for it."""
        ...


class Tokenizer(Protocol):
    """What the server needs of a tokenizer; all of it may be called from any thread."""

    def encode(self, text: str, add_special_tokens: bool = True, *, context: int | None = None) -> list[int]:
        """Text to tokens; text that can never fit into `context` tokens is refused."""
        ...

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Tokens to text."""
        ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **template_arguments: Any) -> str:
        """Messages to the text of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """One server; complete once the static adapters are loaded.

    `allowed_lora_roots` limits what the load endpoint may read; None is no limit. `adapter_defaults` is there where
    adapters may bring their own. `max_waiting` sequences may wait in the engine. `facts` are the labels and texts
    of the start screen.
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
    trust_request_chat_template: bool = False
    adapter_defaults: DefaultsCache | None = None
    stream_times: StreamTimes = field(default_factory=StreamTimes)
    max_waiting: int = 4096
    in_flight: InFlight = field(default_factory=InFlight)
    allowed_hosts: tuple[str, ...] | None = None
    limiter: Limiter = field(default_factory=Limiter)
    metrics: Metrics = field(default_factory=Metrics)
    hooks: PluginHooks = field(default_factory=PluginHooks)
    store: DiskStore | None = None
    traffic: Traffic = field(default_factory=Traffic)
    facts: tuple[tuple[str, str], ...] = ()


SERVER = web.AppKey("server", Server)
