"""The door: the listening socket, from the moment it is bound to the one in which it closes behind the last client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from loramux.errors import ConfigInvalid

BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Door:
    """The listening socket of a running application."""

    runner: web.BaseRunner
    listener: socket.socket

    @classmethod
    async def open(cls, runner: web.BaseRunner, listener: socket.socket) -> Door:
        """Let clients in."""
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        return cls(runner, listener)

    async def close(self) -> None:
        """Listen no more; who has knocked is let in, since the kernel would cut them off when the socket closes."""
        knocking = list(_accepted(self.listener))
        for site in self.runner.sites:
            await site.stop()  # closes the socket before anything is awaited
        assert self.runner.server is not None
        for connection in knocking:
            await asyncio.get_running_loop().connect_accepted_socket(self.runner.server, connection)


def bind(host: str, port: int) -> socket.socket:
    """Take the address; raises ConfigInvalid when it cannot be had.

    It listens at once: two servers can bind one port, but not listen on it. Clients that come early wait their turn.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise _cannot_listen(host, port, exc) from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(host, port, exc) from exc
    return listener


def _cannot_listen(host: str, port: int, exc: OSError) -> ConfigInvalid:
    return ConfigInvalid(f"cannot listen on --host {host} --port {port}: {exc.strerror or exc}")


def url_of(host: str, listener: socket.socket) -> str:
    """Where clients find the server."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    with suppress(OSError):  # nobody is left, or no more files can be opened
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection
