"""HTTP by hand: sends bytes as they are, well-formed or not, and reads what a server says to them."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_SECONDS = 60.0
"""For an answer that has to come."""

MOMENT_SECONDS = 0.02
"""For an answer that may never come, because the request is still incomplete."""


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    method: str = "GET"


class Wire:
    """One client; keeps its connection as long as the server does."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def ask(self, raw: bytes, method: str) -> Answer:
        """Send a complete request and wait for its answer."""
        is_reused = self._socket is not None
        try:
            return self._exchange(raw, method, PATIENCE_SECONDS)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            if not is_reused:  # a kept connection may have been closed by the server since
                raise
            return self._exchange(raw, method, PATIENCE_SECONDS)

    def provoke(self, raw: bytes) -> Answer | None:
        """Send whatever this is on a connection of its own, look whether an answer comes, and hang up."""
        self.close()
        try:
            return self._exchange(raw, "POST", MOMENT_SECONDS)
        except (OSError, http.client.HTTPException):  # nothing, or half an answer: the client leaves before its end
            return None
        finally:
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, raw: bytes, method: str, seconds: float) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(self._address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(seconds)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end, the answer is there
            self._socket.sendall(raw)
        response = http.client.HTTPResponse(self._socket, method=method)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, headers, response.read(), method)
        finally:
            response.close()
        if response.will_close:
            self.close()
        return answer


def render(method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, chunked: bool = False) -> bytes:
    """Write a request; of two headers that differ in case alone the later one is sent."""
    fields = {name.lower(): (name, value) for name, value in headers.items()}
    if chunked:
        fields["transfer-encoding"] = ("Transfer-Encoding", "chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _parts(body)) + b"0\r\n\r\n"
    else:
        fields["content-length"] = ("Content-Length", str(len(body)))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.values())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _parts(body: bytes) -> list[bytes]:
    middle = len(body) // 2
    return [part for part in (body[:middle], body[middle:]) if part]
