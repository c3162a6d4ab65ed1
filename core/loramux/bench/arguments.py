"""The arguments of `loramux bench`: declared, checked, and turned into a plan before anything is loaded or asked."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loramux.bench.adapter_choice import AdapterChoice, lora_requests, read_local, read_served
from loramux.bench.lengths import ACCEPTED_LENGTHS, parse_lengths
from loramux.bench.plan import Plan
from loramux.bench.plot import ENDINGS, check_plot
from loramux.bench.popularity import ACCEPTED_POPULARITY, parse_popularity
from loramux.bench.replay import Replay, read_replay
from loramux.bench.server_address import ServerAddress
from loramux.bench.workload import Workload
from loramux.config import EngineArgs
from loramux.errors import ConfigInvalid
from loramux.lora.request import LoRARequest
from loramux.server.startup.access_arguments import API_KEY_VARIABLE
from loramux.server.startup.arguments import add_engine_arguments, add_slot_arguments, given_engine_options

DEFAULT_VOCAB_SIZE = 32_000
_MADE_UP = ("num_requests", "prompt_tokens", "output_tokens", "shared_prefix_tokens", "popularity", "num_adapters")
_SLOT_OPTIONS = ("max_loras", "max_lora_rank", "max_cpu_loras", "base_match")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where results go, besides the table on the terminal."""

    as_json: bool = False
    output: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        for setting, path in (("--output", self.output), ("--plot", self.plot)):
            if path is not None and not path.parent.is_dir():
                raise ConfigInvalid(f"{setting} {path}: there is no such folder")
        if self.plot is not None:
            check_plot(self.plot)


def add_offline_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `loramux bench offline` takes."""
    parser.add_argument("model", metavar="MODEL", help="a safetensors folder, a .gguf file or a Hub id")
    _add_load(parser, adapters="folders of adapters, PATH or NAME=PATH, and base")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--enable-lora", action="store_true", default=None, help="also where no adapter is asked for")
    add_slot_arguments(engine)
    add_engine_arguments(engine)
    engine.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt from its first token")
    _add_outputs(parser)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `loramux bench serve` takes."""
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", required=True, metavar="URL", help="where it listens, with or without /v1")
    group.add_argument("--api-key", metavar="KEY", help=f"what it wants to see ({API_KEY_VARIABLE})")
    group.add_argument("--model", metavar="NAME", help="of the base model (the first one that it lists)")
    group.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long a request may take (%(default)g)"
    )
    group.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help="prompts that are made up have token ids below this (%(default)s)",
    )
    _add_load(parser, adapters="names that the server knows, and base")
    _add_outputs(parser)


def read_offline(arguments: argparse.Namespace) -> tuple[Plan, EngineArgs, dict[str, LoRARequest]]:
    """Return what to do, with which engine and adapters; raises ConfigInvalid."""
    choices = read_local(arguments.adapters)
    adapters = lora_requests(choices)
    plan = _plan(arguments, choices)
    if isinstance(plan.load, Replay):
        for name in plan.load.adapters:
            if name is not None and name not in adapters:
                raise ConfigInvalid(f"--replay asks for {name!r}: --adapters must say {name}=PATH")
    options = given_engine_options(arguments)
    if adapters:
        options["enable_lora"] = True
    for name in () if options.get("enable_lora") else _SLOT_OPTIONS:
        if name in options:
            raise ConfigInvalid(f"{_flag(name)} needs --adapters or --enable-lora")
    caching = not arguments.no_prefix_caching
    return plan, EngineArgs(model=arguments.model, enable_prefix_caching=caching, **options), adapters


def read_server(arguments: argparse.Namespace, environment: Mapping[str, str]) -> tuple[Plan, ServerAddress]:
    """Return what to do, with which server; raises ConfigInvalid."""
    _check_count("--vocab-size", arguments.vocab_size, at_least=1)
    if arguments.replay is not None and arguments.adapters:
        raise ConfigInvalid("--adapters does not go with --replay: the log names the models")
    address = ServerAddress(
        base_url=arguments.base_url,
        api_key=arguments.api_key or environment.get(API_KEY_VARIABLE) or None,
        model=arguments.model,
        timeout_seconds=arguments.timeout,
    )
    return _plan(arguments, read_served(arguments.adapters)), address


def read_outputs(arguments: argparse.Namespace) -> Outputs:
    """Say where results go; raises ConfigInvalid where they cannot."""
    return Outputs(as_json=arguments.json, output=arguments.output, plot=arguments.plot)


def _add_load(parser: argparse.ArgumentParser, *, adapters: str) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--adapters",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADAPTER",
        help=f"{adapters}; lora-{{0..999}} is a thousand of them (the base model alone)",
    )
    group.add_argument("--popularity", metavar="P", help=f"{ACCEPTED_POPULARITY} (distinct: they take turns)")
    group.add_argument("--num-adapters", metavar="N,N,N", help="one run for each N, with the first N adapters (all)")
    group.add_argument("--num-requests", type=int, metavar="N", help="of each run (32)")
    group.add_argument("--prompt-tokens", metavar="LENGTHS", help=f"{ACCEPTED_LENGTHS} (64)")
    group.add_argument("--output-tokens", metavar="LENGTHS", help="as the prompts' (64)")
    group.add_argument(
        "--shared-prefix-tokens", type=int, metavar="N", help="in front of every prompt, the same in all (0)"
    )
    group.add_argument("--replay", type=Path, metavar="FILE.jsonl", help="send what a log says instead")
    arrivals = group.add_mutually_exclusive_group()
    arrivals.add_argument(
        "--concurrency", type=int, metavar="N", help="clients that send their next request when one is answered"
    )
    arrivals.add_argument(
        "--request-rate",
        type=float,
        metavar="R",
        help="requests per second, as a Poisson process, answered or not; inf: all at once (inf, or as the log says)",
    )
    group.add_argument(
        "--warmup-requests", type=int, default=1, metavar="N", help="sent before each run, not counted (%(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="the same load for the same seed (%(default)s)")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")
    group.add_argument("--output", type=Path, metavar="FILE.json", help="write all of it, with every request")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"draw it over the number of adapters: {', '.join(ENDINGS)}"
    )


def _plan(arguments: argparse.Namespace, choices: tuple[AdapterChoice, ...]) -> Plan:
    _check_count("--warmup-requests", arguments.warmup_requests, at_least=0)
    _check_count("--seed", arguments.seed, at_least=0)
    if arguments.concurrency is not None:
        _check_count("--concurrency", arguments.concurrency, at_least=1)
    rate: float | None = arguments.request_rate
    if rate is not None and not rate > 0:
        raise ConfigInvalid(f"--request-rate must be above 0, got {rate:g}")
    if arguments.replay is None:
        load: Workload | Replay = _workload(arguments)
        sweep = _sweep(arguments.num_adapters, len(choices))
        rate = math.inf if rate is None else rate
    else:
        load, sweep = _replay(arguments), (len(choices),)
    return Plan(
        load=load,
        choices=choices,
        sweep=sweep,
        concurrency=arguments.concurrency,
        request_rate=rate,
        num_warmup=arguments.warmup_requests,
    )


def _workload(arguments: argparse.Namespace) -> Workload:
    num_requests = 32 if arguments.num_requests is None else arguments.num_requests
    num_shared = arguments.shared_prefix_tokens or 0
    _check_count("--num-requests", num_requests, at_least=1)
    _check_count("--shared-prefix-tokens", num_shared, at_least=0)
    if arguments.popularity is not None and not arguments.adapters:
        raise ConfigInvalid("--popularity needs --adapters")
    return Workload(
        num_requests=num_requests,
        prompt_lengths=parse_lengths("--prompt-tokens", arguments.prompt_tokens or "64"),
        output_lengths=parse_lengths("--output-tokens", arguments.output_tokens or "64"),
        popularity=parse_popularity("--popularity", arguments.popularity or "distinct"),
        shared_prefix_tokens=num_shared,
        seed=arguments.seed,
    )


def _replay(arguments: argparse.Namespace) -> Replay:
    for name in _MADE_UP:
        if getattr(arguments, name) is not None:
            raise ConfigInvalid(f"{_flag(name)} does not go with --replay: the log says it")
    replay = read_replay(arguments.replay, seed=arguments.seed)
    if not replay.has_arrivals and arguments.concurrency is None and arguments.request_rate is None:
        raise ConfigInvalid(
            f"--replay {arguments.replay}: not every line has arrival_seconds; say --concurrency or --request-rate"
        )
    return replay


def _sweep(text: str | None, num_choices: int) -> tuple[int, ...]:
    if text is None:
        return (num_choices,)
    numbers = [part.strip() for part in text.split(",")]
    accepted = f"numbers from 0 to {num_choices}, the number of --adapters, with commas between them"
    if not all(number.isascii() and number.isdigit() and int(number) <= num_choices for number in numbers):
        raise ConfigInvalid(f"--num-adapters must be {accepted}; got {text!r}")
    return tuple(dict.fromkeys(map(int, numbers)))


def _check_count(setting: str, value: int, *, at_least: int) -> None:
    if value < at_least:
        raise ConfigInvalid(f"{setting} must be at least {at_least}, got {value}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
