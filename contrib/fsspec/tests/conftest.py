"""Places to find adapters at: one in memory, and a real web server on 127.0.0.1 that can fail."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from loramux.lora.remote import RemoteAdapter, RemoteFile
from loramux_fsspec import FsspecLoRAResolver

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A URL, and one resolver per question to ask it with."""

    url: str

    def resolver(self) -> FsspecLoRAResolver:
        resolver = FsspecLoRAResolver.from_config({"url": self.url})
        assert resolver is not None
        return resolver

    def run(self, work: Callable[[FsspecLoRAResolver], Awaitable[T]]) -> T:
        """Do something with a resolver on a loop of its own, and close it there."""
        resolver = self.resolver()

        async def work_and_close() -> T:
            try:
                return await work(resolver)
            finally:
                await resolver.aclose()

        return asyncio.run(work_and_close())

    def locate(self, name: str = "team/sql") -> RemoteAdapter | None:
        return self.run(lambda it: it.locate("base", name))

    def found(self, name: str = "team/sql") -> RemoteAdapter:
        found = self.locate(name)
        assert found is not None
        return found

    def download(self, file: RemoteFile, destination: Path) -> bytes:
        self.run(lambda it: it.download(file, destination))
        return destination.read_bytes()


@pytest.fixture
def place_at() -> Callable[[str], Place]:
    """Make a place of a URL."""
    return Place


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Return fsspec's one file system in memory, empty, as it is left, too."""
    file_system = MemoryFileSystem()
    file_system.store.clear()
    yield file_system
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


@dataclass
class WebServer:
    """`files` are served by path; `statuses` answer for a path instead; `calls` are all requests so far."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sent_headers: list[dict[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    has_etags: bool = True
    has_sizes: bool = True
    num_sent: int | None = None

    @property
    def place(self) -> Place:
        return Place(f"{self.url}/adapters/{{lora_name}}")

    def put_adapter(self, folder: str, config: bytes = b"{}", weights: bytes = b"weights") -> None:
        self.files[f"{folder}/adapter_config.json"] = config
        self.files[f"{folder}/adapter_model.safetensors"] = weights


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece: the second of two waits for the client's acknowledgement
    web: WebServer

    def do_GET(self) -> None:
        self.web.calls.append(f"{self.command} {self.path}")
        self.web.sent_headers.append(dict(self.headers))
        body = self.web.files.get(self.path)
        status = self.web.statuses.get(self.path, 404 if body is None else 200)
        body = b"canary words" if body is None or status != 200 else body
        self.send_response(status)
        for name, value in self.web.headers.items():
            self.send_header(name, value)
        if self.web.has_etags:
            self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
        if self.web.has_sizes:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.web.num_sent])
        self.close_connection = self.close_connection or self.web.num_sent is not None

    do_HEAD = do_GET  # noqa: N815 - the base class wants this name

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a full queue makes a client wait for a second


@pytest.fixture
def web() -> Iterator[WebServer]:
    """Serve on a free port until the end of the test."""
    web = WebServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield web
    server.shutdown()
    server.server_close()
    thread.join()
