"""The arguments of `loramux serve` and the environment it reads: both become frozen configs here, and only here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from loramux.adapters.disk_store import DEFAULT_MAX_DISK_BYTES
from loramux.adapters.store_layout import DEFAULT_STORE_ROOT
from loramux.config import BaseMatch, DeviceName, DTypeName, EngineArgs, KVCacheDType, Quantization
from loramux.errors import ConfigInvalid
from loramux.lora.adapter_root import why_unsafe
from loramux.lora.plugin_manager import PluginConfig
from loramux.lora.resolver_options import ResolverOptions
from loramux.server.observing.log_format import LogFormat
from loramux.server.startup.access_arguments import add_access_arguments, read_access
from loramux.server.startup.config import ServerConfig, StoreConfig
from loramux.server.startup.lora_modules import parse_lora_modules

ENGINE_OPTIONS = (
    "tokenizer",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "max_cpu_loras",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "memory_utilization",
    "dtype",
    "kv_cache_dtype",
    "quantization",
    "device",
    "seed",
    "base_match",
)

_LORA_OPTIONS = (
    "lora_modules",
    "lora_alias",
    "lora_wait",
    "store",
    "max_disk_bytes",
    "lora_resolvers",
    "resolver_option",
    "config",
    "allowed_lora_roots",
    "adapter_defaults",
    "max_loras",
    "max_lora_rank",
    "max_cpu_loras",
    "base_match",
)

STORE_VARIABLE = "LORAMUX_STORE"
KERNELS_VARIABLE = "LORAMUX_KERNELS"
_UPDATING = "LORAMUX_ALLOW_RUNTIME_LORA_UPDATING"


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare everything `loramux serve` takes; a flag that is not given leaves the config's own default."""
    parser.add_argument("model", metavar="MODEL", help="a safetensors folder, a .gguf file or a Hub id")
    parser.add_argument(
        "--served-model-name", nargs="+", action="extend", metavar="NAME", help="names of the base model (the path)"
    )
    add_access_arguments(parser)
    parser.add_argument(
        "--log-format", choices=get_args(LogFormat), default="text", help="of standard error (%(default)s)"
    )
    _add_adapters(parser.add_argument_group("adapters"))
    _add_chat(parser.add_argument_group("chat"))
    add_resolver_arguments(parser)
    engine = parser.add_argument_group("engine")
    add_engine_arguments(engine)
    engine.add_argument("--seed", type=int, metavar="N", help="for requests that bring none (0)")


def add_resolver_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what decides which resolvers are active."""
    group = parser.add_argument_group("resolvers")
    group.add_argument("--lora-resolvers", metavar="A,B,C", help="exactly these, asked in this order")
    group.add_argument(
        "--resolver-option", action="append", default=[], metavar="NAME.OPTION=VALUE", help="may be repeated"
    )
    group.add_argument("--config", type=Path, metavar="FILE.toml", help="[resolvers.NAME] tables with options")


def read_server_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServerConfig:
    """Bring arguments and environment together; raises ConfigInvalid."""
    _refuse_without_lora(arguments)
    return ServerConfig(
        engine=EngineArgs(
            model=arguments.model,
            served_model_name=tuple(arguments.served_model_name or ()),
            kernels=environment.get(KERNELS_VARIABLE) or "auto",  # type: ignore[arg-type]  # EngineArgs checks it
            **given_engine_options(arguments),
        ),
        **read_access(arguments, environment),
        log_format=arguments.log_format,
        lora_modules=tuple(parse_lora_modules(arguments.lora_modules)),
        plugins=read_plugin_config(arguments, environment),
        allow_runtime_updates=_read_switch(_UPDATING, environment.get(_UPDATING, "")),
        allowed_lora_roots=_read_roots(arguments.allowed_lora_roots),
        lora_aliases=_read_aliases(arguments.lora_alias),
        adapter_defaults=bool(arguments.adapter_defaults),
        trust_request_chat_template=arguments.trust_request_chat_template,
        lora_wait_seconds=30.0 if arguments.lora_wait is None else arguments.lora_wait,
        store=StoreConfig(
            root=arguments.store or Path(environment.get(STORE_VARIABLE) or DEFAULT_STORE_ROOT),
            max_bytes=DEFAULT_MAX_DISK_BYTES if arguments.max_disk_bytes is None else arguments.max_disk_bytes,
        ),
    )


def given_engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of EngineArgs for which there was a flag; the others keep their defaults."""
    return {name: value for name in ENGINE_OPTIONS if (value := getattr(arguments, name)) is not None}


def read_plugin_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> PluginConfig:
    """Say which resolvers are wanted, with which options; raises ConfigInvalid."""
    options = ResolverOptions.gather(
        flags=arguments.resolver_option, environment=environment, config_file=arguments.config
    )
    if arguments.lora_resolvers is None:
        return PluginConfig(None, options)
    names = tuple(name.strip() for name in arguments.lora_resolvers.split(",") if name.strip())
    return PluginConfig(names, options)


def _refuse_without_lora(arguments: argparse.Namespace) -> None:
    """Let no flag about adapters do nothing in silence."""
    if arguments.enable_lora:
        return
    for name in _LORA_OPTIONS:
        if getattr(arguments, name) not in (None, []):
            raise ConfigInvalid(f"--{name.replace('_', '-')} needs --enable-lora")


def _add_chat(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help="let clients send a chat_template and chat_template_kwargs of their own",
    )


def _add_adapters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--enable-lora", action="store_true", default=None, help="serve LoRA adapters")
    group.add_argument(
        "--lora-modules",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE",
        help='adapters served from the start: name=path or {"name": …, "path": …, "base_model_name": …}',
    )
    add_slot_arguments(group)
    group.add_argument(
        "--lora-alias",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=TARGET",
        help="a name that stands for another adapter, and can be moved while the server runs",
    )
    group.add_argument(
        "--lora-wait", type=float, metavar="SECONDS", help="how long a request waits for its adapter to load (30)"
    )
    group.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help=f"where fetched adapters are kept ({STORE_VARIABLE}, {DEFAULT_STORE_ROOT})",
    )
    group.add_argument("--max-disk-bytes", type=read_bytes, metavar="SIZE", help="most that the store may take (50GiB)")
    group.add_argument(
        "--allowed-lora-roots", metavar="DIR,DIR", help="where /v1/load_lora_adapter may load from (anywhere)"
    )
    group.add_argument(
        "--adapter-defaults",
        action="store_true",
        default=None,
        help="let an adapter bring its own chat_template.jinja and generation_config.json beside its weights",
    )


def add_slot_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare how many adapters of what rank there is room for, and which of them belong to the base."""
    group.add_argument("--max-loras", type=int, metavar="N", help="adapters in one batch, slots on the device (8)")
    group.add_argument("--max-lora-rank", type=int, metavar="N", help="largest rank accepted (64)")
    group.add_argument("--max-cpu-loras", type=int, metavar="N", help="adapters kept in host memory (64)")
    group.add_argument("--base-match", choices=get_args(BaseMatch), help="how an adapter must name its base (basename)")


def add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare what shapes an engine, but for its adapters and its seed."""
    group.add_argument("--tokenizer", metavar="MODEL", help="where the tokenizer is, if not with the model")
    group.add_argument("--max-model-len", type=int, metavar="N", help="most tokens of prompt and answer together")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="most sequences in one batch")
    group.add_argument("--max-num-batched-tokens", type=int, metavar="N", help="most tokens computed in one step")
    group.add_argument(
        "--kv-cache-memory-bytes", type=read_bytes, metavar="SIZE", help="memory for the KV cache: 2GiB, 512MiB, bytes"
    )
    group.add_argument(
        "--memory-utilization", type=float, metavar="SHARE", help="or its share of the memory that is free"
    )
    group.add_argument("--dtype", choices=get_args(DTypeName), help="what to compute in (auto)")
    group.add_argument(
        "--kv-cache-dtype",
        choices=get_args(KVCacheDType),
        help="keep keys and values in 16 bits beside a model of float32 on a CPU: twice the tokens (auto: as computed)",
    )
    group.add_argument(
        "--quantization",
        choices=get_args(Quantization),
        help="keep the weights of linear layers in 8 bits: faster for few requests, on a CPU in float32 (off)",
    )
    group.add_argument("--device", choices=get_args(DeviceName), help="where to compute (auto)")


_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def read_bytes(text: str) -> int:
    """Read a size as people write it, for argparse."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes or 512MiB, 2GiB")
    return int(match[1]) * _UNITS[match[2]]


def _read_switch(name: str, value: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("", "false", "0"):
        return False
    raise ConfigInvalid(f"{name} must be True or False, got {value!r}")


def _read_aliases(items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    aliases = []
    for item in items:
        alias, equals, target = item.partition("=")
        if not (alias and equals and target):
            raise ConfigInvalid(f"--lora-alias {item!r} must look like NAME=TARGET")
        aliases.append((alias, target))
    return tuple(aliases)


def _read_roots(text: str | None) -> tuple[Path, ...] | None:
    if text is None:
        return None
    roots = [Path(part.strip()).expanduser() for part in text.split(",") if part.strip()]
    return tuple(_checked_root(root) for root in roots)


def _checked_root(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigInvalid(f"--allowed-lora-roots: {str(root)!r} is no folder")
    if (reason := why_unsafe(root)) is not None:
        raise ConfigInvalid(f"--allowed-lora-roots: {str(root)!r} cannot be used: {reason}")
    return root.resolve()
