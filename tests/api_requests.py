"""Hypothesis strategies for requests: near what the API takes, and wrong in one way or another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from wire import render

Json = Any

INTEGERS = st.sampled_from([0, -1, 1, 2, 17, 10_000, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30])
FLOATS = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1e-9, 1e-45, 2.5, 1e308, -1e308])
TEXTS = st.sampled_from(
    ["", " ", "x", "0", "null", "\x00", "\u202e", "😀", "é" * 70, "a" * 3000, "../../etc/passwd", "%2e%2e", "{{ 7*7 }}"]
) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
LARGE = st.sampled_from([[0] * 3000, ["x"] * 200, {str(key): 1 for key in range(400)}, [[1]] * 80, "word " * 3000])


@st.composite
def _deep(draw: st.DrawFn) -> Json:
    value: Json = draw(SCALARS)
    for _ in range(draw(st.sampled_from([20, 31, 32, 33, 200]))):
        value = [value] if draw(st.booleans()) else {"a": value}
    return value


JUNK = st.one_of(SCALARS, SCALARS, SCALARS, NESTED, LARGE, _deep())


@dataclass(frozen=True)
class Api:
    """What a server has: routes from its OpenAPI document, bodies that some of them take, names of models, keys."""

    document: Mapping[str, Any]
    bodies: Mapping[str, Sequence[Mapping[str, Json]]]
    models: Sequence[str]
    authorizations: Sequence[str | None]

    @property
    def targets(self) -> list[tuple[str, str]]:
        return [(method.upper(), path) for path, item in self.document["paths"].items() for method in item]

    def fields(self, path: str) -> list[str]:
        """All fields that the body of a route may have, whichever of its forms it takes."""
        body = self.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = self._schema(body)
        forms = [self._schema(form) for form in schema.get("anyOf", ())] or [schema]
        return [*dict.fromkeys(field for form in forms for field in form["properties"])]

    def _schema(self, reference: Mapping[str, str]) -> Mapping[str, Any]:
        schema: Mapping[str, Any] = self.document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
        return schema


def any_requests(api: Api) -> st.SearchStrategy[tuple[str, bytes]]:
    """A method, and the bytes of a request that is proper HTTP."""
    return st.one_of(_posts(api), _posts(api), _posts(api), _others(api))


def broken_http(api: Api) -> st.SearchStrategy[bytes]:
    """Bytes that were a request before something happened to them."""
    return st.one_of(_damaged(api), _damaged(api), st.sampled_from(NO_HTTP), st.binary(max_size=60))


NO_HTTP = [
    b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/models HTTP/9.9\r\nHost: a\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\n\r\n",
    b"GET /v1/models\r\n\r\n",
    b"BREW /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://[bad/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://other/v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 300 + b"\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]


@st.composite
def _damaged(draw: st.DrawFn, api: Api) -> bytes:
    _, raw = draw(_posts(api))
    place = draw(st.integers(0, min(len(raw), 400)))
    length = draw(st.integers(0, 12))
    match draw(st.sampled_from(["cut", "delete", "insert", "replace", "repeat"])):
        case "cut":
            return raw[:place]
        case "delete":
            return raw[:place] + raw[place + length :]
        case "insert":
            return raw[:place] + draw(st.binary(min_size=1, max_size=8)) + raw[place:]
        case "replace":
            return raw[:place] + draw(st.binary(min_size=1, max_size=8)) + raw[place + length :]
        case _:
            return raw[:place] + raw[place : place + length] * 2 + raw[place + length :]


@st.composite
def _posts(draw: st.DrawFn, api: Api) -> tuple[str, bytes]:
    path = draw(st.sampled_from([path for method, path in api.targets if method == "POST"]))
    body = dict(draw(st.sampled_from(api.bodies.get(path, [{}]))))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        field = draw(st.sampled_from([*api.fields(path), *body]))
        match draw(st.sampled_from(["set", "set", "set", "set", "unset", "unknown"])):
            case "set":
                body[field] = draw(JUNK)
            case "unset":
                body.pop(field, None)
            case _:
                body[draw(TEXTS)] = draw(JUNK)
    for field in ("model", "lora_name", "alias", "target"):
        if field in body and draw(st.sampled_from([True, True, False])):
            body[field] = draw(st.sampled_from(api.models))
    headers = draw(_headers(api))
    chunked = draw(st.integers(0, 9)) == 0
    return "POST", render("POST", path, headers, draw(_encoded(body)), chunked=chunked)


ENCODINGS = ["plain"] * 40 + ["cut", "tail", "twice", "nan", "utf-16", "bytes", "half", "digits", "other"]


@st.composite
def _encoded(draw: st.DrawFn, body: Json) -> bytes:
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    match draw(st.sampled_from(ENCODINGS)):
        case "cut":
            return text[: draw(st.integers(0, len(text)))]
        case "tail":
            return text + draw(st.sampled_from([b"{}", b",", b"\x00", b"]"]))
        case "twice":
            return text[:1] + b'"prompt":"x","prompt":"y",' + text[1:]
        case "nan":
            number = draw(st.sampled_from([b"NaN", b"-Infinity", b"1e999"]))
            return text[:1] + b'"temperature":' + number + b"," + text[1:]
        case "utf-16":
            return text.decode("utf-8", "replace").encode("utf-16")
        case "bytes":
            return text.replace(b"i", draw(st.sampled_from([b"\xff", b"\xc0\x80", b"\xed\xa0\x80"])))
        case "half":
            return text[:1] + b'"user":"\\ud800",' + text[1:]
        case "digits":
            return text[:1] + b'"seed":' + b"9" * 5000 + b"," + text[1:]
        case "other":
            return draw(st.sampled_from([b"", b"[]", b"1", b'"x"', b"null", b"[" * 20_000, b'{"a":' * 5_000]))
        case _:
            return text


QUERIES = ["", "", "?", "?lora_name=", "?lora_name=good", "?lora_name=a%2Fb", "?a=%ff&a=&%", "?" + "a" * 2000]


@st.composite
def _others(draw: st.DrawFn, api: Api) -> tuple[str, bytes]:
    method, path = draw(st.sampled_from(api.targets))
    if draw(st.sampled_from([False, False, True])):
        method = draw(st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]))
    path = path.replace("{model}", draw(_model_in_path(api)))
    if draw(st.sampled_from([False, False, True])):
        path = draw(st.sampled_from([f"{path}/", f"/{path}", path.upper(), f"{path}/x", "/v1", "/", "/v1/../v1"]))
    path += draw(st.sampled_from(QUERIES))
    body = draw(st.sampled_from([b"", b"", b"{}", b"x"]))
    return method, render(method, path, draw(_headers(api)), body)


def _model_in_path(api: Api) -> st.SearchStrategy[str]:
    names = st.sampled_from(api.models) | TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
    quoted = names.map(lambda name: quote(name, safe="")[:2000] or "x")
    return st.one_of(quoted, quoted, st.sampled_from(ODD_NAMES))


ODD_NAMES = ["%", "%zz", "%ff", "a//b", "a:b@c", "..%2f..", "%2e%2e/x", "a;b", "%00", "a/../b"]


@st.composite
def _headers(draw: st.DrawFn, api: Api) -> dict[str, str]:
    headers = {"Host": "localhost", "Content-Type": "application/json"}
    authorization = draw(st.sampled_from(api.authorizations))
    if authorization is not None:
        headers["Authorization"] = authorization
    if draw(st.integers(0, 4)) == 0:
        name, values = draw(st.sampled_from(sorted(ODD_HEADERS.items())))
        headers[name] = draw(st.sampled_from(values))
    return headers


ODD_HEADERS = {
    "Content-Type": ["", "text/plain", "application/json; charset=latin-1", "multipart/form-data", "é", "a/b/c;;"],
    "Content-Encoding": ["gzip", "identity", "br, gzip", ""],
    "Expect": ["100-continue", "200-ok", ""],
    "Host": ["", "evil.example", "[::1", "a:99999", "é"],
    "X-Request-Id": ["", "mine", "a b", "é", "x" * 200, "a;b"],
    "Accept": ["text/html", "*/*", "application/xml;q=0.1"],
    "Connection": ["close", "keep-alive", "upgrade"],
    "Range": ["bytes=0-1"],
    "If-None-Match": ["*"],
    "Cookie": ["a=b; " * 50],
    "X-Forwarded-For": ["1.2.3.4"],
}
