"""`loramux serve`, from checked settings to a server that answers, and from a signal to a clean end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from loramux.adapters.disk_store import DiskStore
from loramux.adapters.materializer import Materializer
from loramux.adapters.registry import AdapterRegistry, Patience
from loramux.adapters.resolver_chain import ResolverChain
from loramux.engine.async_llm_engine import AsyncLLMEngine
from loramux.errors import AdapterInvalid, ConfigInvalid, RequestInvalid
from loramux.lora.plugin_hooks import PluginHooks
from loramux.lora.plugin_manager import PluginManager
from loramux.lora.remote import RemoteLoRAResolver
from loramux.lora.request import LoRARequest
from loramux.metrics.metrics import Metrics
from loramux.server.access.auth import ApiKeys
from loramux.server.access.keys_file import following
from loramux.server.app import build_app, make_runner
from loramux.server.connection import check_parser
from loramux.server.in_flight import InFlight
from loramux.server.inference.adapter_defaults import DefaultsCache
from loramux.server.inference.vocabulary import Vocabulary
from loramux.server.observing.log_format import configure_logging
from loramux.server.startup.access_arguments import API_KEY_VARIABLE
from loramux.server.startup.arguments import KERNELS_VARIABLE
from loramux.server.startup.config import LoRAModule, ServerConfig
from loramux.server.startup.door import Door, bind, url_of
from loramux.server.startup.loading import show_loading
from loramux.server.startup.lora_modules import refused_module
from loramux.server.startup.open_files import make_room_for
from loramux.server.startup.screen import StartScreen, show_start
from loramux.server.startup.shutdown import expect_signal, stop_serving
from loramux.server.state import Server

logger = logging.getLogger(__name__)


def serve(config: ServerConfig) -> int:
    """Serve until a signal comes; raises a LoramuxError that says why when it cannot start."""
    configure_logging(config.log_format)
    warn(config)
    check_parser(may_be_python=config.allow_python_parser)
    make_room_for(config.max_connections)
    listener = bind(config.host, config.port)  # first: a port that is taken shows before minutes of loading
    with listener:
        plugins = PluginManager.start(config.plugins) if config.engine.enable_lora else None
        relay = EvictionRelay()
        metrics = Metrics()
        with _store(config, plugins) as store:
            with show_loading(config.engine.model, is_quiet=config.log_format == "json"):
                engine = AsyncLLMEngine.from_engine_args(
                    config.engine, on_adapter_event=relay, on_adapter_load=metrics.adapters.observe_load
                )
            try:
                parts = _Parts(config, engine, plugins, store, metrics)
                asyncio.run(_run(parts, listener=listener, relay=relay))
            finally:
                engine.shutdown()
                if plugins is not None:
                    plugins.close()
    logger.info("stopped")  # what still takes a second is the interpreter, which takes torch apart
    return 0


@dataclass(frozen=True, slots=True)
class _Parts:
    """What outlives the event loop."""

    config: ServerConfig
    engine: AsyncLLMEngine
    plugins: PluginManager | None
    store: DiskStore | None
    metrics: Metrics

    @property
    def hooks(self) -> PluginHooks:
        return PluginHooks() if self.plugins is None else self.plugins.hooks


async def _run(parts: _Parts, *, listener: socket.socket, relay: EvictionRelay) -> None:
    config, plugins, store = parts.config, parts.plugins, parts.store
    async with AsyncExitStack() as held:
        registry = await held.enter_async_context(_registry(parts))
        relay.connect(registry)
        await _load_modules(config.lora_modules, registry)
        api_keys = ApiKeys.from_keys(config.api_keys, None if config.keys_file is None else config.keys_file.keys)
        await held.enter_async_context(following(config.keys_file, api_keys))
        statuses = () if plugins is None else tuple(plugins.report())
        stored_nbytes = None if store is None else store.nbytes
        screen = StartScreen(parts.engine.summary, config, statuses, url_of(config.host, listener), stored_nbytes)
        server = _server(parts, registry, api_keys, facts=tuple(screen.lines()))
        runner = make_runner(
            build_app(server),
            max_connections=config.max_connections,
            max_per_client=config.max_connections_per_client,
        )
        await runner.setup()
        try:
            first_signal = expect_signal()
            # All that was made until now stays: a full collection would walk over it and stop every stream meanwhile.
            # None is done before either: it takes a third of a second and finds nothing.
            gc.freeze()
            door = await Door.open(runner, listener)
            show_start(screen)
            await stop_serving(door, server.in_flight, config.stop, await first_signal)
        finally:
            gc.unfreeze()
            await runner.cleanup()


async def _load_modules(modules: Sequence[LoRAModule], registry: AdapterRegistry) -> None:
    for module in modules:
        try:
            await registry.add(module.name, module.path, base_model_name=module.base_model_name, origin="static")
        except AdapterInvalid as exc:
            raise refused_module(module, exc.reason) from exc


@contextmanager
def _store(config: ServerConfig, plugins: PluginManager | None) -> Iterator[DiskStore | None]:
    """Open the store if a resolver fetches files; only one process has it at a time."""
    resolvers = () if plugins is None else plugins.resolvers
    if not any(isinstance(active.resolver, RemoteLoRAResolver) for active in resolvers):
        yield None
        return
    store = DiskStore.open(config.store.root, max_bytes=config.store.max_bytes)
    try:
        yield store
    finally:
        store.close()


@asynccontextmanager
async def _registry(parts: _Parts) -> AsyncIterator[AdapterRegistry]:
    config, adapters = parts.config, parts.metrics.adapters
    materializer = None
    if parts.store is not None:
        materializer = Materializer(
            parts.store,
            fetches_defaults=config.adapter_defaults,
            on_fetched=partial(adapters.observe_load, "source_to_disk"),
        )
    chain = ResolverChain(
        () if parts.plugins is None else parts.plugins.resolvers, materializer, on_step=adapters.count_step
    )
    registry = AdapterRegistry(
        config.engine.base_model_names,
        chain,
        load=parts.engine.load_adapter,
        unload=parts.engine.remove_lora,
        memory=parts.engine,
        hooks=parts.hooks,
        patience=Patience(lora_wait_seconds=config.lora_wait_seconds),
    )
    try:
        for alias, target in config.lora_aliases:
            _set_alias(registry, alias, target)
        yield registry
    finally:
        await registry.close()
        await chain.close()


def _set_alias(registry: AdapterRegistry, alias: str, target: str) -> None:
    try:
        registry.move_alias(alias, target)
    except RequestInvalid as exc:
        raise ConfigInvalid(f"--lora-alias {alias}={target}: {exc}") from exc


def _server(
    parts: _Parts, registry: AdapterRegistry, api_keys: ApiKeys, *, facts: tuple[tuple[str, str], ...]
) -> Server:
    config, engine = parts.config, parts.engine
    return Server(
        engine=engine,
        tokenizer=engine.tokenizer,
        vocabulary=Vocabulary(engine.tokenizer.token_text, engine.tokenizer.token_bytes),
        registry=registry,
        base_model_names=config.engine.base_model_names,
        model_root=config.engine.model,
        max_model_len=engine.summary.max_model_len,
        created=int(time.time()),
        api_keys=api_keys,
        allow_runtime_updates=config.allow_runtime_updates and config.engine.enable_lora,
        allowed_lora_roots=config.allowed_lora_roots,
        allowed_hosts=config.checked_hosts,
        max_waiting=config.max_waiting,
        in_flight=InFlight(max_seconds=config.request_timeout_seconds),
        metrics=parts.metrics,
        hooks=parts.hooks,
        store=parts.store,
        adapter_defaults=DefaultsCache() if config.adapter_defaults else None,
        trust_request_chat_template=config.trust_request_chat_template,
        facts=facts,
    )


class EvictionRelay:
    """Carry the engine's news of evicted adapters from its threads to the registry's loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._registry: AdapterRegistry | None = None

    def connect(self, registry: AdapterRegistry) -> None:
        """Start to pass on; called on the registry's loop."""
        self._registry = registry
        self._loop = asyncio.get_running_loop()

    def __call__(self, kind: str, request: LoRARequest) -> None:
        if kind != "evicted" or self._loop is None or self._registry is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._registry.notify_evicted, request.lora_int_id)


def warn(config: ServerConfig) -> None:
    """Log what the operator may not have meant: variables without effect, and doors that are open."""
    if config.is_public and not config.needs_key:
        logger.warning("--insecure: everybody who reaches --host %s may use this server", config.host)
    if config.keys_file is not None and config.keys_file.is_open_to_others():
        logger.warning("--keys-file %s can be read or changed by other users: chmod 600", config.keys_file.path)
    if not config.engine.enable_lora:
        ignored = sorted(set(config.plugins.options.environment) - {API_KEY_VARIABLE, KERNELS_VARIABLE})
        if ignored:
            logger.warning("without --enable-lora these have no effect: %s", ", ".join(ignored))
        return
    if not config.allow_runtime_updates:
        return
    logger.warning(
        "LORAMUX_ALLOW_RUNTIME_LORA_UPDATING is on: whoever reaches this server can load and unload adapters. "
        "Leave it off unless every client is trusted."
    )
    if config.allowed_lora_roots is None:
        logger.warning("--allowed-lora-roots is not set: adapters can be loaded from any folder of this machine")
