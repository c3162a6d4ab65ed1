"""`loramux serve` in a process of its own, as an operator starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120


@dataclass(frozen=True)
class Served:
    """A server that is ready; `screen` is what it printed on its way there."""

    process: subprocess.Popen[str]
    url: str
    screen: str
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(START_SECONDS)


@contextmanager
def serving(*arguments: str, log: Path, python: str = sys.executable, **environment: str) -> Iterator[Served]:
    """Start a server on a free port, and end it with SIGINT if the test has not."""
    command = [python, "-m", "loramux.cli", "serve", *arguments, "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        screen = _read_until_ready(process)
        watchdog.cancel()
        assert "listening" in screen, log.read_text()
        yield Served(process, screen.split()[-1], screen, log)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # SIGTERM would leave the door open for a while
        process.wait(START_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


def _read_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("listening"):
            break
    return "".join(lines)
