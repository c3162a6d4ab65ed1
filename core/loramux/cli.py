"""The `loramux` command: arguments and environment are read here, once, and become frozen configs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from loramux import __version__
from loramux.adapters.disk_store import DEFAULT_MAX_DISK_BYTES
from loramux.adapters.store_layout import DEFAULT_STORE_ROOT
from loramux.bench.arguments import (
    add_offline_arguments,
    add_server_arguments,
    read_offline,
    read_outputs,
    read_server,
)
from loramux.config import BaseMatch
from loramux.errors import ConfigInvalid, LoramuxError
from loramux.garbage import without_collection
from loramux.server.observing.log_format import configure_logging
from loramux.server.startup.arguments import (
    STORE_VARIABLE,
    add_resolver_arguments,
    add_serve_arguments,
    read_bytes,
    read_plugin_config,
    read_server_config,
)
from loramux.server.startup.config import StoreConfig
from loramux.server.startup.lora_modules import refuse_missing_folders

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for wrong settings, 3 for an unknown adapter, 1 for other failures."""
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except ConfigInvalid as exc:
        _complain(arguments, f"loramux {arguments.command}: error: {exc}")
        return 2
    except LoramuxError as exc:
        _complain(arguments, f"loramux {arguments.command}: failed: {exc}")
        return 1
    except KeyboardInterrupt:
        return 130


def _complain(arguments: argparse.Namespace, text: str) -> None:
    """Say on standard error why the command ends, in the form that the rest of it has."""
    if getattr(arguments, "log_format", "text") == "json":
        configure_logging("json")
        logger.critical(text)
    else:
        sys.stderr.write(f"{text}\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loramux", description="One base model, thousands of LoRA adapters, one server.")
    parser.add_argument("--version", action="version", version=f"loramux {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model and its adapters over HTTP", allow_abbrev=False)
    add_serve_arguments(serve)
    plugins = commands.add_parser("plugins", help="list the plugins: which are active, where they look, why not")
    plugins.add_argument("--json", action="store_true", help="print JSON")
    add_resolver_arguments(plugins)
    _add_resolve(commands.add_parser("resolve", help="ask the resolvers for an adapter, without a server"))
    _add_inspect(commands.add_parser("inspect", help="show what is in an adapter, and how it fares in every check"))
    _add_store(commands.add_parser("store", help="list, verify and clean up the store of fetched adapters"))
    _add_bench(commands.add_parser("bench", help="measure an engine in this process, or a server over HTTP"))
    return parser


def _add_resolve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the adapter's name, as a client would send it")
    parser.add_argument("--explain", action="store_true", help="print what each resolver said, and how long it took")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--base", default="base", metavar="NAME", help="name of the base model (%(default)s)")
    add_resolver_arguments(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="PATH|NAME", help="an adapter's folder, or a name for the resolvers")
    parser.add_argument("--base", metavar="MODEL", help="check it against this base model, which is loaded for that")
    parser.add_argument("--served-model-name", nargs="+", default=[], metavar="NAME", help="names of the base model")
    parser.add_argument("--base-match", choices=get_args(BaseMatch), default="basename", help="as for serve")
    parser.add_argument(
        "--max-lora-rank", type=int, default=64, metavar="N", help="largest rank accepted (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_resolver_arguments(parser)


def _add_store(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="list what is there, also beside a running server")
    actions.add_parser("verify", help="read and hash all of it, also beside a running server")
    gc = actions.add_parser("gc", help="remove what is corrupt, leads nowhere or exceeds the quota; no server may run")
    gc.add_argument("--max-disk-bytes", type=read_bytes, metavar="SIZE", help="most that the store may take (50GiB)")
    for action in actions.choices.values():
        action.add_argument(
            "--store", type=Path, metavar="DIR", help=f"where it is ({STORE_VARIABLE}, {DEFAULT_STORE_ROOT})"
        )
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    targets = parser.add_subparsers(dest="target", required=True, metavar="TARGET")
    offline = targets.add_parser("offline", help="load a model into this process", allow_abbrev=False)
    add_offline_arguments(offline)
    serve = targets.add_parser("serve", help="ask a server that speaks OpenAI's API", allow_abbrev=False)
    add_server_arguments(serve)


def _serve(arguments: argparse.Namespace) -> int:
    config = read_server_config(arguments, os.environ)
    refuse_missing_folders(config.lora_modules)
    with without_collection():
        from loramux.server.startup.launch import serve  # imports torch: not before the arguments are known to be good

    return serve(config)


def _plugins(arguments: argparse.Namespace) -> int:
    config = read_plugin_config(arguments, os.environ)
    from loramux.commands.plugins import show_plugins  # plugins may import much; `--help` needs none of it

    show_plugins(config, as_json=arguments.json)
    return 0


def _resolve(arguments: argparse.Namespace) -> int:
    plugins = read_plugin_config(arguments, os.environ)
    from loramux.commands.resolve import show_resolution  # imports torch, to look into what is found

    return show_resolution(
        arguments.name,
        base_model_name=arguments.base,
        plugins=plugins,
        explains=arguments.explain,
        as_json=arguments.json,
    )


def _inspect(arguments: argparse.Namespace) -> int:
    plugins = read_plugin_config(arguments, os.environ)
    from loramux.commands.inspect import InspectOptions, show_inspection  # imports torch

    return show_inspection(
        InspectOptions(
            target=arguments.target,
            base=arguments.base,
            served_model_name=tuple(arguments.served_model_name),
            base_match=arguments.base_match,
            max_lora_rank=arguments.max_lora_rank,
            plugins=plugins,
            as_json=arguments.json,
        )
    )


def _store(arguments: argparse.Namespace) -> int:
    root = arguments.store or Path(os.environ.get(STORE_VARIABLE) or DEFAULT_STORE_ROOT)
    from loramux.commands.store import clean_store, list_store, verify_store

    match arguments.action:
        case "ls":
            return list_store(StoreConfig(root), as_json=arguments.json)
        case "verify":
            return verify_store(StoreConfig(root), as_json=arguments.json)
        case _:
            max_bytes = DEFAULT_MAX_DISK_BYTES if arguments.max_disk_bytes is None else arguments.max_disk_bytes
            return clean_store(StoreConfig(root, max_bytes), as_json=arguments.json)


def _bench(arguments: argparse.Namespace) -> int:
    outputs = read_outputs(arguments)
    if arguments.target == "offline":
        plan, engine, adapters = read_offline(arguments)
        from loramux.commands.bench import measure_engine

        return measure_engine(plan, engine, adapters, outputs)
    plan, address = read_server(arguments, os.environ)
    from loramux.commands.bench import measure_server

    return measure_server(plan, address, arguments.vocab_size, outputs)


_COMMANDS = {
    "serve": _serve,
    "plugins": _plugins,
    "resolve": _resolve,
    "inspect": _inspect,
    "store": _store,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
