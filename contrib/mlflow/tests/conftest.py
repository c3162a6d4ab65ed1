"""ScriptedServer: an HTTP server that gives the answers it is told, as MLflow gives them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from loramux.lora.remote import RemoteAdapter, RemoteFile
from loramux_mlflow import MlflowLoRAResolver

try:
    importlib.metadata.version("mlflow")
except importlib.metadata.PackageNotFoundError:
    collect_ignore = ["test_mlflow_server.py"]  # `make test-mlflow` runs it, in an environment of its own

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One MLflow server, and one resolver per question to ask it with."""

    url: str
    options: dict[str, str] = field(default_factory=dict)

    def resolver(self) -> MlflowLoRAResolver:
        resolver = MlflowLoRAResolver.from_config({"tracking_uri": self.url, **self.options})
        assert resolver is not None
        return resolver

    def run(self, work: Callable[[MlflowLoRAResolver], Awaitable[T]]) -> T:
        """Do something with a resolver on a loop of its own, and close it there."""
        resolver = self.resolver()

        async def work_and_close() -> T:
            try:
                return await work(resolver)
            finally:
                await resolver.aclose()

        return asyncio.run(work_and_close())

    def locate(self, name: str) -> RemoteAdapter | None:
        return self.run(lambda it: it.locate("base", name))

    def found(self, name: str) -> RemoteAdapter:
        found = self.locate(name)
        assert found is not None
        return found

    def download(self, file: RemoteFile, destination: Path) -> bytes:
        self.run(lambda it: it.download(file, destination))
        return destination.read_bytes()


@pytest.fixture
def asked() -> type[Asked]:
    """Ask the server of a URL, with options."""
    return Asked


@pytest.fixture(autouse=True)
def _own_mlflow_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(variable, raising=False)


@dataclass
class ScriptedServer:
    """`answers` by path, without the query: status and content; `calls` are all requests so far."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sent_headers: list[dict[str, str]] = field(default_factory=list)
    num_sent: int | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece: the second of two waits for the client's acknowledgement
    server_of_test: ScriptedServer

    def do_GET(self) -> None:
        script = self.server_of_test
        script.calls.append(self.path)
        script.sent_headers.append(dict(self.headers))
        status, content = script.answers.get(self.path.partition("?")[0], (404, {"error_code": "ENDPOINT_NOT_FOUND"}))
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **script.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: script.num_sent])
        self.close_connection = self.close_connection or script.num_sent is not None

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a full queue makes a client wait for a second


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    """Serve on a free port until the end of the test; nothing is known yet."""
    script = ScriptedServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of_test": script}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield script
    server.shutdown()
    server.server_close()
    thread.join()
