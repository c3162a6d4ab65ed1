"""loramux beside what one would pick instead: `python contrib/benchmarks/compare.py`.

Every system runs in a process of its own and does one job at a time, in an order that is drawn anew each round, with
the same prompts and as many tokens as the others. Printed are tokens per second as the median of the rounds with its
spread, the project's goals as ratios within a round, and the limits of the machine as measured in the same rounds.
Systems that need an environment of their own take part once `peers/environments.py` has made it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console

from comparison.cases import ADAPTER_NAMES, CASES, NUM_SLOTS, RANKS, Case
from comparison.ceiling import model_work
from comparison.checks import check
from comparison.plot import draw
from comparison.report import Report, make_report, show
from comparison.rounds import Plan, run_rounds
from comparison.systems import MACHINE, SYSTEMS, System
from loramux.bench.environment import processor
from made_adapters import ALL_LINEAR, AdapterKind, ensure_adapters
from peers.protocol import Settings
from random_model import build_model

BASE_MODEL = Path(__file__).resolve().parents[1] / "demo" / "base_model.py"
TINY_PROMPT, TINY_TOKENS = 16, 6


def main() -> int:
    """Compare; 0 when every system did what it was asked for, 1 when one did not."""
    arguments = _parse(sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 250)
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(arguments, Path(folder))
        outcome = run_rounds(plan, Console(stderr=True).print)
        checked = check(outcome.measured, plan.settings)
    report = make_report(_setting(plan, outcome.versions), outcome, checked, plan.work)
    show(report, plan.cases, console)
    _write(report, arguments)
    return 1 if checked.wrong or outcome.failures else 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a safetensors folder (default: the demo's SmolLM2-135M-Instruct)")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp (default: the demo's, for its model)")
    parser.add_argument("--systems", type=_names(SYSTEMS), help=f"of {', '.join(SYSTEMS)} (default: what is there)")
    parser.add_argument("--cases", type=_names([case.name for case in CASES]), help="some of the cases (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the order")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--plot", type=Path, help="draw the speeds into a PNG")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model and short loads: counts, not speeds")
    return parser.parse_args(words)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Make a reader of comma-separated names that refuses the ones it does not know."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def _plan(arguments: argparse.Namespace, scratch: Path) -> Plan:
    model, gguf = _model(arguments, scratch)
    cases = [case for case in CASES if arguments.cases is None or case.name in arguments.cases]
    if arguments.tiny:
        cases = [_shortened(case) for case in cases]
    num_adapters = max((ADAPTER_NAMES.index(name) + 1 for case in cases for name in case.adapters), default=0)
    cache = scratch / "adapters" if arguments.tiny else None
    adapters = ensure_adapters(model, num_adapters, AdapterKind(RANKS, ALL_LINEAR), cache=cache)
    return Plan(
        systems=[MACHINE, *_systems(arguments, gguf)],
        cases=cases,
        num_rounds=arguments.rounds,
        seed=arguments.seed,
        vocab_size=json.loads((model / "config.json").read_text())["vocab_size"],
        work=model_work(model),
        settings=Settings(
            model=str(model),
            gguf=None if gguf is None else str(gguf),
            threads=arguments.threads,
            adapters={name: str(folder) for name, folder in adapters.items()},
            max_slots=NUM_SLOTS,
            max_rank=max(RANKS),
        ),
    )


def _model(arguments: argparse.Namespace, scratch: Path) -> tuple[Path, Path | None]:
    if arguments.tiny:
        return build_model(scratch / "tiny", hidden=64, layers=2), None
    if arguments.model is not None:
        return arguments.model.resolve(), arguments.gguf and arguments.gguf.resolve()
    return _base_model(), arguments.gguf.resolve() if arguments.gguf else _base_model("--gguf")


def _base_model(*options: str) -> Path:
    """Ask the demo for its model, which it fetches once."""
    command = [sys.executable, str(BASE_MODEL), *options]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())  # noqa: S603


def _shortened(case: Case) -> Case:
    if case.kind == "limits":
        return case
    return replace(case, prompt_length=TINY_PROMPT, num_tokens=TINY_TOKENS)


def _systems(arguments: argparse.Namespace, gguf: Path | None) -> list[System]:
    """Take the systems that were named, or else the usual ones that are there."""
    if arguments.systems is not None:
        chosen = [SYSTEMS[name] for name in arguments.systems]
        missing = [system.name for system in chosen if not system.is_installed()]
        if missing:
            sys.exit(f"not installed: run `python contrib/benchmarks/peers/environments.py {' '.join(missing)}` first")
        return chosen
    usual = [system for system in SYSTEMS.values() if system.is_default and system.is_installed()]
    return [system for system in usual if gguf is not None or system.name != "llama_cpp"]


def _setting(plan: Plan, versions: Mapping[str, str]) -> dict[str, str]:
    return {
        "machine": f"{processor()}, {plan.settings.threads} threads, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "model": f"{Path(plan.settings.model).name}, {plan.work.weight_bytes / 1e6:.0f} MB of float32 weights",
        "command": shlex.join(["python", "contrib/benchmarks/compare.py", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {plan.num_rounds} rounds",
    }


def _write(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if arguments.plot is not None:
        draw(report, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
