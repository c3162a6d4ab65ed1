from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

import pytest

from loramux import __version__


async def test_the_version_is_the_packages(client) -> None:
    assert (await client.get("/version")).json == {"version": __version__}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_said_in_json(client, method: str, path: str, status: int, code: str) -> None:
    reply = await client.request(method, path)

    assert (reply.status, reply.error["code"]) == (status, code)
    assert reply.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models"])
async def test_every_response_has_an_id_and_hides_what_runs_underneath(client, path: str) -> None:
    headers = (await client.get(path)).headers

    assert headers["Server"] == "loramux"
    assert len(headers["X-Request-Id"]) == 32


async def test_a_clients_own_request_id_is_kept(client) -> None:
    reply = await client.complete()
    assert reply.json["id"] == f"cmpl-{reply.headers['X-Request-Id']}"

    named = await client.post("/v1/completions", {"prompt": "x"}, headers={"X-Request-Id": "order-66"})
    assert (named.headers["X-Request-Id"], named.json["id"]) == ("order-66", "cmpl-order-66")


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, "a;b", "ü"])
async def test_a_request_id_that_could_do_harm_is_replaced(client, offered: str) -> None:
    reply = await client.get("/health", headers={"X-Request-Id": offered})

    assert len(reply.headers["X-Request-Id"]) == 32


async def test_one_request_id_may_be_used_twice_at_once(client, engine) -> None:
    for _ in range(2):
        await client.post("/v1/completions", {"prompt": ["x", "y"]}, headers={"X-Request-Id": "same"})

    request_ids = [request_id for _, _, request_id, _ in engine.seen]
    assert len(set(request_ids)) == 4


async def test_a_large_body_may_ask_before_it_comes(client) -> None:
    reply = await client.post("/v1/completions", {"prompt": "x"}, expect100=True)

    assert reply.status == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/nowhere"])
async def test_other_expectations_are_refused_in_json(client, path: str) -> None:
    reply = await client.post(path, {"prompt": "x"}, headers={"Expect": "coffee"})

    assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")


async def test_the_access_log_tells_no_more_than_the_server_knows(client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="loramux.access")

    await client.get("/v1/models/secret-name?key=secret", headers={"User-Agent": "secret"})
    await client.get("/secret")

    lines = [record.getMessage() for record in caplog.records if record.name == "loramux.access"]
    assert lines[0].startswith("GET /v1/models/{model} status=404 milliseconds=")
    assert lines[1].startswith("GET - status=404 ")
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize(
    "raw",
    [
        b"secret\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\nsecret secret: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: secret\r\n\r\n",
        b"GET /" + b"secret" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[secret HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_without_a_word_of_alarm(
    client, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    address = urlsplit(client.url)

    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(raw)
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()

    head, body = reply.split(b"\r\n\r\n", 1)
    assert head.split()[1] == b"400"
    assert b"Content-Type: application/json" in head
    assert b"X-Request-Id: " in head
    assert b"Python" not in head
    assert json.loads(body)["error"]["code"] == "malformed_request"
    assert [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")] == []
    assert "secret" not in caplog.text
