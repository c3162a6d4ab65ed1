from __future__ import annotations

import pytest

from loramux.server.access.hosts import is_meant


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8000", "models.lan:80"],
)
def test_this_machine_and_what_is_allowed_are_meant(host: str) -> None:
    assert is_meant(host, ("models.lan",))


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "192.168.1.5"]
)
def test_other_names_are_not(host: str) -> None:
    assert not is_meant(host, ("models.lan",))


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/nowhere"])
async def test_a_page_that_was_led_here_by_dns_gets_nothing(start, path: str) -> None:
    client = await start(allowed_hosts=())

    led = await client.get(path, headers={"Host": "evil.example"})
    meant = await client.get(path, headers={"Host": "localhost"})

    assert (led.status, led.error["code"]) == (403, "host_not_allowed")
    assert meant.status != 403


async def test_where_no_names_are_known_any_will_do(client) -> None:
    assert (await client.get("/health", headers={"Host": "10.0.0.7:8000"})).status == 200


@pytest.mark.parametrize("protocol", ["websocket", "WebSocket", "tcp"])
async def test_a_switch_to_another_protocol_is_refused(client, protocol: str) -> None:
    reply = await client.get("/v1/models", headers={"Connection": "Upgrade", "Upgrade": protocol})

    assert (reply.status, reply.error["code"], reply.headers["Connection"]) == (400, "upgrade_refused", "close")


async def test_an_offer_of_http2_is_no_reason_to_refuse(client) -> None:
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}

    assert (await client.post("/v1/completions", {"prompt": "x"}, headers=headers)).status == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_probe_may_ask_by_address(start, path: str) -> None:
    client = await start(allowed_hosts=())

    assert (await client.get(path, headers={"Host": "10.1.2.3:8000"})).status == 200
