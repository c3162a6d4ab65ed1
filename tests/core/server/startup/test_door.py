from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from loramux.errors import ConfigInvalid
from loramux.server.startup.door import Door, bind, url_of


def test_port_zero_takes_a_free_port_and_the_address_names_it() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        assert port > 0
        assert url_of("127.0.0.1", listener) == f"http://127.0.0.1:{port}"
        assert url_of("::1", listener) == f"http://[::1]:{port}"


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigInvalid, match=rf"cannot listen on --host 127.0.0.1 --port {port}: "):
            bind("127.0.0.1", port)


def test_of_two_servers_on_one_port_the_second_fails_before_either_is_ready() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        with pytest.raises(ConfigInvalid, match=rf"cannot listen on --host 127.0.0.1 --port {port}: "):
            bind("127.0.0.1", port)


def test_a_client_that_comes_early_waits_instead_of_being_refused() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=1):
        accepted, _ = listener.accept()
        accepted.close()


def test_a_host_that_is_no_address_of_this_machine_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot listen on --host 192\.0\.2\.1 --port 0: "):
        bind("192.0.2.1", 0)


def knock(listener: socket.socket) -> socket.socket:
    """Connect and ask, while the server has no chance to look."""
    client = socket.create_connection(listener.getsockname(), timeout=1)
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(4096), b""))


async def test_who_has_knocked_before_the_door_closes_is_answered(runner: web.AppRunner) -> None:
    listener = bind("127.0.0.1", 0)
    door = await Door.open(runner, listener)
    address = listener.getsockname()
    clients = [knock(listener) for _ in range(20)]

    await door.close()

    replies = await asyncio.gather(*(asyncio.to_thread(read_to_the_end, client) for client in clients))
    assert all(reply.endswith(b"hello") for reply in replies)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
