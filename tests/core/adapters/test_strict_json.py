"""Strict JSON: what two readers could understand differently is refused."""

from __future__ import annotations

import pytest

from loramux.adapters.strict_json import parse_json_object


def test_an_object_is_parsed() -> None:
    assert parse_json_object(b'{"a": [1, {"b": null}]}', max_depth=4) == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"r": 8, "r": 16}', "duplicate key 'r'"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": [[[[1]]]]}', "nested deeper than 4 levels"),
        (b'{"a":' + b"[" * 100_000, "nested deeper than 4 levels"),
    ],
)
def test_ambiguous_text_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[")):
        parse_json_object(content, max_depth=4)


@pytest.mark.parametrize("content", [b"", b"{", b"\xef\xbb\xbf{}", b'{"a": 1}}', b'{"a": ' + b"9" * 5000 + b"}"])
def test_broken_text_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json_object(content, max_depth=4)


def test_the_deepest_allowed_object_is_parsed() -> None:
    assert parse_json_object(b'{"a": [[[1]]]}', max_depth=4)
