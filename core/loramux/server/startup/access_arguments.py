"""The arguments of `loramux serve` about who gets in, and how the server closes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramux.server.access.keys_file import KeysFile
from loramux.server.connection_limits import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT
from loramux.server.startup.shutdown import StopConfig

API_KEY_VARIABLE = "LORAMUX_API_KEY"


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("address and access")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on; 0 = any free one (%(default)s)")
    group.add_argument(
        "--api-key", nargs="+", action="extend", metavar="KEY", help="keys that may do everything (LORAMUX_API_KEY)"
    )
    group.add_argument("--keys-file", type=Path, metavar="FILE.toml", help="[[keys]] tables with scopes and limits")
    group.add_argument("--insecure", action="store_true", help="let other machines in without a key")
    group.add_argument(
        "--allowed-hosts",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names that requests may use in their Host header, besides those of loopback; any, where --host is public",
    )
    group.add_argument(
        "--max-connections", type=int, default=MAX_CONNECTIONS, metavar="N", help="open at once (%(default)s)"
    )
    group.add_argument(
        "--max-connections-per-client",
        type=int,
        default=MAX_CONNECTIONS_PER_CLIENT,
        metavar="N",
        help="open at once from one address, but for loopback (%(default)s)",
    )
    group.add_argument(
        "--max-waiting", type=int, default=4096, metavar="N", help="sequences waiting for the engine (%(default)s)"
    )
    group.add_argument(
        "--request-timeout", type=float, metavar="SECONDS", help="how long a request may take in all (no limit)"
    )
    group.add_argument(
        "--allow-python-parser", action="store_true", help="serve although aiohttp's compiled HTTP parser is missing"
    )
    group.add_argument(
        "--drain-delay",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long SIGTERM leaves the door open, so that balancers notice (%(default)g)",
    )
    group.add_argument(
        "--grace",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long requests may go on after a signal (%(default)g)",
    )


def read_access(arguments: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    """Read them into fields of ServerConfig; raises ConfigInvalid."""
    key_of_environment = environment.get(API_KEY_VARIABLE)
    return {
        "host": arguments.host,
        "port": arguments.port,
        "api_keys": tuple(arguments.api_key or ([key_of_environment] if key_of_environment else [])),
        "keys_file": None if arguments.keys_file is None else KeysFile.read(arguments.keys_file),
        "is_insecure": arguments.insecure,
        "allowed_hosts": tuple(host.lower() for host in arguments.allowed_hosts),
        "max_connections": arguments.max_connections,
        "max_connections_per_client": arguments.max_connections_per_client,
        "max_waiting": arguments.max_waiting,
        "request_timeout_seconds": arguments.request_timeout,
        "allow_python_parser": arguments.allow_python_parser,
        "stop": StopConfig(drain_delay_seconds=arguments.drain_delay, grace_seconds=arguments.grace),
    }
