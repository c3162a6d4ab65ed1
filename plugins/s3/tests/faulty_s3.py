"""FaultyS3: a proxy before a real S3 API, over HTTP, that counts the calls and spoils those it is told to spoil."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What is sent back; after `num_sent` bytes of the body the connection is cut or left hanging."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    num_sent: int | None = None
    hangs: bool = False
    is_silent: bool = False


Fault = Callable[[Answer], Answer]


def answered(status: int, code: str = "", **headers: str) -> Fault:
    """Let the server answer with an error; its own words are to be shown nowhere."""
    body = f"<Error><Code>{code}</Code><Message>canary words</Message></Error>".encode() if code else b"<p>canary"
    return lambda answer: Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def cut(num_sent: int) -> Fault:
    """Cut the connection after some bytes of the body."""
    return lambda answer: replace(answer, num_sent=num_sent)


def hanging(num_sent: int) -> Fault:
    """Send some bytes of the body, and nothing more until the client goes."""
    return lambda answer: replace(answer, num_sent=num_sent, hangs=True)


def silent(answer: Answer) -> Answer:
    """Take the request, and never answer."""
    return replace(answer, is_silent=True)


def with_body(change: Callable[[bytes], bytes]) -> Fault:
    """Change the body, with a length that agrees with it."""
    return lambda answer: replace(answer, body=change(answer.body))


def with_headers(**headers: str | None) -> Fault:
    """Set headers; None leaves one out."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}

    def change(answer: Answer) -> Answer:
        merged = {**{name.lower(): value for name, value in answer.headers.items()}, **given}
        return replace(answer, headers={name: value for name, value in merged.items() if value is not None})

    return change


class FaultyS3:
    """Use `running`. `calls` are all requests so far, as `GET /bucket/key?query`; `sent_headers` are theirs."""

    url: str

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.calls: list[str] = []
        self.sent_headers: list[dict[str, str]] = []
        self.is_over = threading.Event()
        self._faults: list[tuple[str, str, Fault]] = []

    @classmethod
    @contextmanager
    def running(cls, upstream: tuple[str, int]) -> Iterator[FaultyS3]:
        """Serve on a free port until the end of the block."""
        proxy = cls(upstream)
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield proxy
        finally:
            proxy.is_over.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def spoil(self, method: str, file_name: str, fault: Fault) -> None:
        """Spoil every answer to this method, for keys that end in this name."""
        self._faults.append((method, file_name, fault))

    def heal(self) -> None:
        """Let everything through again."""
        self._faults.clear()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        """Ask the real server, and spoil what it says."""
        self.calls.append(f"{method} {path}")
        self.sent_headers.append({name.lower(): value for name, value in headers.items()})
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            answer = Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()
        key = path.partition("?")[0]
        for faulty_method, file_name, fault in self._faults:
            if method == faulty_method and key.endswith(file_name):
                answer = fault(answer)
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a full queue makes a client wait for a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyS3

    def do_GET(self) -> None:
        answer = self.proxy.answer(self.command, self.path, dict(self.headers))
        if answer.is_silent:
            self.proxy.is_over.wait()
        headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in _OF_THE_HOP}
        if self.command != "HEAD":
            headers["content-length"] = str(len(answer.body))
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: answer.num_sent])
        self.wfile.flush()
        if answer.hangs:
            self.proxy.is_over.wait()
        self.close_connection = answer.num_sent is not None

    do_HEAD = do_GET  # noqa: N815 - the base class wants this name

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


_OF_THE_HOP = ("connection", "date", "server", "transfer-encoding")
