from __future__ import annotations

import asyncio
import io

import pytest

from loramux.errors import RequestInvalid
from loramux.server import body
from loramux.server.body import parse_json_object


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "expecting value at line 1, column 1"),
        (b"{", "expecting property name"),
        (b"[1]", "must be an object"),
        (b'"text"', "must be an object"),
        (b'{"a": 1, "a": 2}', "repeats a key"),
        (b'{"a": {"b": 1, "b": 2}}', "repeats a key"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "cannot be decoded"),
        (b'{"a": "\\ud800"}', "cannot be decoded"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be decoded"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "deeper than 32"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 32"),
    ],
)
def test_what_is_no_plain_json_object_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(RequestInvalid, match=r"^The request body is not valid JSON: ") as caught:
        parse_json_object(raw)

    assert reason in str(caught.value)
    assert caught.value.code == "invalid_json"


def test_unicode_and_surrogate_pairs_are_taken() -> None:
    assert parse_json_object('{"a": "ü\\ud83d\\ude00"}'.encode()) == {"a": "ü😀"}


def test_thirty_levels_are_not_too_deep() -> None:
    assert parse_json_object(b'{"a": ' + b"[" * 30 + b"]" * 30 + b"}")


async def test_only_json_is_accepted(client) -> None:
    reply = await client.request("POST", "/v1/completions", data=b"{}", headers={"Content-Type": "text/plain"})

    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


async def test_compressed_bodies_are_refused_unread(client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    reply = await client.request("POST", "/v1/completions", data=b"\x1f\x8b", headers=headers)

    assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")


async def test_a_body_over_four_mebibytes_is_refused(client) -> None:
    raw = io.BytesIO(b'{"prompt": "' + b"x" * (4 * 2**20) + b'"}')
    reply = await client.request("POST", "/v1/completions", data=raw, headers={"Content-Type": "application/json"})

    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


async def test_a_body_that_does_not_arrive_is_given_up(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_SECONDS", 0.01)
    never = asyncio.get_running_loop().create_future()

    async def stalled():
        yield b"{"
        await never

    headers = {"Content-Type": "application/json"}
    async with client.session.post(client.url + "/v1/completions", data=stalled(), headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "body_timeout"


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"n": "5"}, "n", "invalid_value", "Invalid value for 'n': Input should be a valid integer, got \"5\"."),
        ({"n": True}, "n", "invalid_value", "Invalid value for 'n': Input should be a valid integer, got true."),
        (
            {"n": 99},
            "n",
            "value_above_maximum",
            "Invalid value for 'n': Input should be less than or equal to 16, got 99.",
        ),
        (
            {"temperature": 3},
            "temperature",
            "invalid_value",
            "temperature must be a number from 0 to 2, got 3.0",
        ),
        (
            {"stream_options": {"include_usage": "yes"}, "stream": True},
            "stream_options.include_usage",
            "invalid_value",
            "Invalid value for 'stream_options.include_usage': Input should be a valid boolean, got \"yes\".",
        ),
        (
            {"stop": 5},
            "stop",
            "invalid_value",
            "Invalid value for 'stop': Input should be a valid string or a valid list, got 5.",
        ),
        (
            {"stop": ["a", {}]},
            "stop.1",
            "invalid_value",
            "Invalid value for 'stop.1': Input should be a valid string, got an object.",
        ),
        (
            {"stop": ["a"] * 17},
            "stop",
            "value_above_maximum",
            "Invalid value for 'stop': List should have at most 16 items after validation, not 17.",
        ),
        (
            {"user": ["x"] * 3},
            "user",
            "invalid_value",
            "Invalid value for 'user': Input should be a valid string, got a list of 3.",
        ),
    ],
)
async def test_a_bad_field_is_named_with_what_is_wrong(
    client, fields: dict[str, object], param: str, code: str, message: str
) -> None:
    reply = await client.complete(**fields)

    assert reply.status == 400
    assert reply.error == {"message": message, "type": "invalid_request_error", "param": param, "code": code}


@pytest.mark.parametrize(
    ("content", "param", "message"),
    [
        (5, "messages.0.content", "Input should be a valid string or a valid list, got 5."),
        ([{"type": "image_url"}], "messages.0.content.0.type", "Input should be 'text', got \"image_url\"."),
        ("x", None, ""),
    ],
)
async def test_a_place_in_a_message_is_named_as_the_client_wrote_it(
    client, content: object, param: str | None, message: str
) -> None:
    reply = await client.chat(content)

    error = reply.error if reply.status == 400 else {"param": None, "message": ""}
    assert error["param"] == param
    assert error["message"].endswith(message)


async def test_a_long_value_is_shown_in_part(client) -> None:
    reply = await client.complete(n="x" * 10_000)

    assert len(reply.error["message"]) < 250


async def test_a_part_of_a_message_that_is_missing_is_named(client) -> None:
    reply = await client.chat([{"type": "text"}])

    assert reply.error["message"] == "Missing required parameter: 'messages.0.content.0.text'."


async def test_a_missing_field_is_named(client) -> None:
    reply = await client.post("/v1/chat/completions", {})

    assert reply.error["message"] == "Missing required parameter: 'messages'."
    assert reply.error["code"] == "missing_required_parameter"
