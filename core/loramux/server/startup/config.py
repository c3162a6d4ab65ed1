"""What `loramux serve` was told about serving, validated before a weight is read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from loramux.adapters.adapter_name import is_adapter_name
from loramux.adapters.disk_store import DEFAULT_MAX_DISK_BYTES
from loramux.adapters.store_layout import DEFAULT_STORE_ROOT
from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.lora.plugin_manager import PluginConfig
from loramux.server.access.hosts import is_loopback
from loramux.server.access.keys_file import KeysFile
from loramux.server.connection_limits import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT
from loramux.server.observing.log_format import LogFormat
from loramux.server.startup.shutdown import StopConfig

_HOST = re.compile(r"[a-z0-9._:-]{1,253}")  # lower case; a colon is part of an IPv6 address

ADAPTER_NAME_RULE = "1 to 255 of A-Z a-z 0-9 . _ : @ / + -, a letter or digit first, no empty, '.' or '..' segment"


@dataclass(frozen=True, slots=True)
class LoRAModule:
    """An adapter that is served from the start."""

    name: str
    path: str
    base_model_name: str | None = None


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where fetched adapters are kept, and how much disk they may take."""

    root: Path = Path(DEFAULT_STORE_ROOT)
    max_bytes: int = DEFAULT_MAX_DISK_BYTES

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigInvalid(f"--max-disk-bytes must be at least 1, got {self.max_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything about the server that is not about the engine.

    `adapter_defaults` lets adapters bring their own chat template and generation defaults;
    `trust_request_chat_template` lets clients bring a template. `allowed_lora_roots` limits what the load endpoint may
    read; None is no limit. Port 0 takes any free port. Raises ConfigInvalid, which names the setting, its value and
    what to do.
    """

    engine: EngineArgs
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    keys_file: KeysFile | None = None
    is_insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = MAX_CONNECTIONS
    max_connections_per_client: int = MAX_CONNECTIONS_PER_CLIENT
    max_waiting: int = 4096
    request_timeout_seconds: float | None = None
    allow_python_parser: bool = False
    stop: StopConfig = field(default_factory=StopConfig)
    lora_modules: tuple[LoRAModule, ...] = ()
    plugins: PluginConfig = field(default_factory=PluginConfig)
    allow_runtime_updates: bool = False
    allowed_lora_roots: tuple[Path, ...] | None = None
    lora_aliases: tuple[tuple[str, str], ...] = ()
    adapter_defaults: bool = False
    trust_request_chat_template: bool = False
    lora_wait_seconds: float = 30.0
    store: StoreConfig = field(default_factory=StoreConfig)
    log_format: LogFormat = "text"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigInvalid(f"--port must be from 0 to 65535, got {self.port}")
        for flag, number in (
            ("--max-connections", self.max_connections),
            ("--max-connections-per-client", self.max_connections_per_client),
        ):
            if not 1 <= number <= 1_000_000:
                raise ConfigInvalid(f"{flag} must be from 1 to 1000000, got {number}")
        if self.max_waiting < 1:
            raise ConfigInvalid(f"--max-waiting must be at least 1, got {self.max_waiting}")
        if self.request_timeout_seconds is not None and not 0 < self.request_timeout_seconds <= 86_400:
            raise ConfigInvalid(
                f"--request-timeout must be above 0 and at most 86400 seconds, got {self.request_timeout_seconds:g}"
            )
        if self.is_insecure and self.needs_key:
            raise ConfigInvalid("--insecure is for a server without a key: leave out one of the two")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise ConfigInvalid(f"--allowed-hosts: {host!r} is no host name; write it as in example.org, no port")
        if not all(key.strip() for key in self.api_keys):
            raise ConfigInvalid("--api-key must not be empty")
        if not 0 < self.lora_wait_seconds <= 600:
            raise ConfigInvalid(f"--lora-wait must be above 0 and at most 600 seconds, got {self.lora_wait_seconds}")
        self._check_exposure()
        self._check_names()

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the server."""
        return not is_loopback(self.host)

    @property
    def checked_hosts(self) -> tuple[str, ...] | None:
        """The names, besides those of loopback, that requests may use for the server; None where any will do."""
        return None if self.is_public and not self.allowed_hosts else self.allowed_hosts

    @property
    def has_admin_key(self) -> bool:
        """Whether there is a key that may manage adapters."""
        return bool(self.api_keys) or (self.keys_file is not None and self.keys_file.has_admin)

    @property
    def needs_key(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_keys) or self.keys_file is not None

    def _check_exposure(self) -> None:
        if not self.is_public:
            return
        if not self.needs_key and not self.is_insecure:
            raise ConfigInvalid(
                f"--host {self.host!r} lets other machines in, so a key is needed: give --api-key KEY or set "
                "LORAMUX_API_KEY, give --keys-file, or listen on 127.0.0.1; --insecure lets everybody in"
            )
        if self.allow_runtime_updates and not self.has_admin_key:
            raise ConfigInvalid(
                f"--host {self.host!r} lets other machines in, and LORAMUX_ALLOW_RUNTIME_LORA_UPDATING needs a key "
                "with the scope admin there: give --api-key KEY, or a key of --keys-file that scope"
            )
        if self.allow_runtime_updates and self.allowed_lora_roots is None:
            raise ConfigInvalid(
                f"--host {self.host!r} lets other machines in, and LORAMUX_ALLOW_RUNTIME_LORA_UPDATING lets them load "
                "adapters: give --allowed-lora-roots DIR,DIR to say from where"
            )

    def _check_names(self) -> None:
        aliases = [alias for alias, _ in self.lora_aliases]
        counts = Counter([*self.engine.base_model_names, *(module.name for module in self.lora_modules), *aliases])
        for name, count in counts.items():
            if count > 1:
                raise ConfigInvalid(f"the model name {name!r} is given {count} times; every model needs its own name")
        for module in self.lora_modules:
            if not is_adapter_name(module.name):
                raise ConfigInvalid(f"--lora-modules: {module.name!r} is no name for an adapter: {ADAPTER_NAME_RULE}")
