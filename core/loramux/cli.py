"""The `loramux` command: arguments and environment are read here, once, and become frozen configs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from loramux import __version__
from loramux.errors import ConfigInvalid, LoramuxError
from loramux.server.arguments import (
    add_resolver_arguments,
    add_serve_arguments,
    read_plugin_config,
    read_server_config,
)
from loramux.server.lora_modules import refuse_missing_folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for wrong settings, 1 for other failures."""
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except ConfigInvalid as exc:
        sys.stderr.write(f"loramux {arguments.command}: error: {exc}\n")
        return 2
    except LoramuxError as exc:
        sys.stderr.write(f"loramux {arguments.command}: failed: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loramux", description="One base model, thousands of LoRA adapters, one server.")
    parser.add_argument("--version", action="version", version=f"loramux {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model and its adapters over HTTP", allow_abbrev=False)
    add_serve_arguments(serve)
    plugins = commands.add_parser("plugins", help="list the plugins: which are active, where they look, why not")
    plugins.add_argument("--json", action="store_true", help="print JSON")
    add_resolver_arguments(plugins)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    config = read_server_config(arguments, os.environ)
    refuse_missing_folders(config.lora_modules)
    from loramux.server.launch import serve  # imports torch: not before the arguments are known to be good

    return serve(config)


def _plugins(arguments: argparse.Namespace) -> int:
    config = read_plugin_config(arguments, os.environ)
    from loramux.server.plugin_table import show_plugins  # plugins may import much; `--help` needs none of it

    show_plugins(config, as_json=arguments.json)
    return 0


_COMMANDS = {"serve": _serve, "plugins": _plugins}

if __name__ == "__main__":
    sys.exit(main())
