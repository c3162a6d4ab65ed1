"""PeerProcess: a peer in a process of its own, asked one job at a time."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from comparison.systems import PEERS, System
from peers.protocol import Job, Settings

TIMEOUT_SECONDS = 600
LOG_LINES = 20
OUR_PATHS = ("PYTHONPATH", "VIRTUAL_ENV")


class PeerFailed(RuntimeError):
    """A peer ended, was too slow, or could not do a job."""


@dataclass(frozen=True, slots=True)
class Done:
    """A job's answer: the seconds it took inside the peer, each request's tokens, and figures."""

    seconds: float
    token_ids: Sequence[Sequence[int]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


class PeerProcess:
    """Starts to load at once; `wait_until_ready` before the first job, and `close` at the end."""

    def __init__(self, system: System, settings: Settings, log: Path) -> None:
        self.system = system
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - the command is one of ours
                system.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=PEERS.parent,
                env=_environment(system, settings.threads),
            )
        self._tell(asdict(settings))

    def wait_until_ready(self) -> Mapping[str, str]:
        """Wait for the model to be loaded; returns the versions of what the peer is made of."""
        ready = self._hear()["ready"]
        assert isinstance(ready, dict)
        return ready

    def do(self, job: Job) -> Done:
        """Let the peer do a job. Raises PeerFailed."""
        self._tell(asdict(job))
        return Done(**self._hear())  # type: ignore[arg-type]  # protocol.py says what it holds

    def is_running(self) -> bool:
        """Whether it can be asked for more."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the peer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _tell(self, content: Mapping[str, object]) -> None:
        stream: IO[str] | None = self._process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(content) + "\n")
            stream.flush()
        except BrokenPipeError as error:
            raise PeerFailed(self._last_words("has ended")) from error

    def _hear(self) -> dict[str, object]:
        assert self._process.stdout is not None
        watch = threading.Timer(TIMEOUT_SECONDS, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise PeerFailed(self._last_words("has ended"))
        content: dict[str, object] = json.loads(line)
        if "error" in content:
            raise PeerFailed(self._last_words(str(content["error"])))
        return content

    def _last_words(self, reason: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"{self.system.title}: {reason}", *lines])


def _environment(system: System, threads: int) -> dict[str, str]:
    """Give every system the same number of threads, and no reason to look for anything outside."""
    ours = {} if system.has_environment else {name: os.environ[name] for name in OUR_PATHS if name in os.environ}
    return {
        **{name: value for name, value in os.environ.items() if name not in OUR_PATHS},
        **ours,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "LORAMUX_PEER_HOME": str(system.home),
        "TOKENIZERS_PARALLELISM": "false",
    }
