from __future__ import annotations

import pytest
from aiohttp import web

from loramux.errors import (
    AdapterInvalid,
    AdapterNotFound,
    ConfigInvalid,
    ContextLengthExceeded,
    EngineDead,
    EngineOverloaded,
    PluginError,
    RequestInvalid,
    ResolverDenied,
    ResolverFailed,
)
from loramux.server.errors import ERROR_KINDS, Refused, describe, describe_http, shown, without_paths

RETRIED_BY_CLIENTS = {408, 409, 429}


@pytest.mark.parametrize(
    ("error", "status", "type_", "code", "param"),
    [
        (RequestInvalid("x", param="n"), 400, "invalid_request_error", "invalid_value", "n"),
        (
            ContextLengthExceeded.of_tokens(8, num_prompt=8, num_answer=1),
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "prompt",
        ),
        (RequestInvalid("x", code="of_nobody"), 400, "invalid_request_error", "invalid_value", None),
        (AdapterNotFound("sql"), 404, "invalid_request_error", "model_not_found", "model"),
        (ResolverDenied("private"), 404, "invalid_request_error", "model_not_found", "model"),
        (ResolverFailed("s3 down"), 503, "server_error", "adapter_source_unavailable", "model"),
        (EngineOverloaded("full"), 503, "server_error", "server_overloaded", None),
        (EngineDead("gone"), 503, "server_error", "engine_unavailable", None),
        (Refused("missing_api_key", "x"), 401, "authentication_error", "missing_api_key", None),
        (
            Refused("adapter_not_found", "x", param="lora_name"),
            404,
            "invalid_request_error",
            "adapter_not_found",
            "lora_name",
        ),
        (ConfigInvalid("x"), 500, "server_error", "internal_error", None),
        (PluginError("x"), 500, "server_error", "internal_error", None),
        (ZeroDivisionError("x"), 500, "server_error", "internal_error", None),
        *(
            (AdapterInvalid("sql", "bad", code=code), 400, "invalid_request_error", code, "model")
            for code in AdapterInvalid.ADAPTER_CODES
        ),
    ],
)
def test_every_error_has_its_status_type_code_and_param(
    error: Exception, status: int, type_: str, code: str, param: str | None
) -> None:
    reply = describe(error, request_id="r1")

    assert (reply.status, reply.type, reply.code, reply.param) == (status, type_, code, param)


@pytest.mark.parametrize("code", ERROR_KINDS)
def test_every_code_makes_a_response_of_the_one_shape(code: str) -> None:
    response = describe(Refused(code, "what is wrong", param="x"), request_id="r1").response()

    assert response.status == ERROR_KINDS[code].status
    assert response.content_type == "application/json"


@pytest.mark.parametrize("code", ERROR_KINDS)
def test_no_code_uses_a_status_that_clients_retry_for_a_failure_that_will_not_heal(code: str) -> None:
    kind = ERROR_KINDS[code]

    assert kind.status not in RETRIED_BY_CLIENTS or "Retry-After" in kind.headers
    assert kind.status < 500 or kind.status in (503, 504) or code == "internal_error"


def test_an_unknown_model_is_named_and_not_retried() -> None:
    reply = describe(AdapterNotFound("sql"), request_id="r1")

    assert reply.message == "The model `sql` does not exist or you do not have access to it."
    assert reply.headers == {"x-should-retry": "false"}


def test_an_invalid_adapter_says_why_without_saying_where() -> None:
    error = AdapterInvalid("sql", "weights in /srv/adapters/sql/a.bin are pickled", code="adapter_format_unsupported")

    assert describe(error, request_id="r1").message == ("Adapter `sql` cannot be served: weights in <path> are pickled")


def test_an_unknown_failure_tells_the_request_id_and_nothing_else() -> None:
    reply = describe(ValueError("/etc/secret"), request_id="r1")

    assert reply.message == "Internal error (request id r1)."


@pytest.mark.parametrize(("seconds", "header"), [(None, "1"), (0.2, "1"), (7.2, "8"), (900, "60")])
def test_a_failed_source_says_when_to_retry_within_what_clients_wait(seconds: float | None, header: str) -> None:
    reply = describe(ResolverFailed("secret-bucket", retry_after_seconds=seconds), request_id="r1")

    assert reply.headers["Retry-After"] == header
    assert "secret" not in reply.message


def test_a_source_that_will_not_heal_is_not_retried() -> None:
    reply = describe(ResolverFailed("x", retryable=False), request_id="r1")

    assert reply.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (web.HTTPNotFound(), 404, "unknown_url"),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "method_not_allowed"),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413, "request_too_large"),
        (web.HTTPBadRequest(), 400, "invalid_value"),
    ],
)
def test_what_the_http_layer_refuses_has_the_same_shape(error: web.HTTPException, status: int, code: str) -> None:
    reply = describe_http(error, method="PUT", path="/v1/x")

    assert (reply.status, reply.code) == (status, code)


def test_a_method_that_is_not_allowed_names_those_that_are() -> None:
    reply = describe_http(web.HTTPMethodNotAllowed("PUT", ["GET"]), method="PUT", path="/x")

    assert reply.headers["Allow"] == "GET"


def test_values_of_clients_are_shown_short_and_printable() -> None:
    assert shown("a\nb\x00" + "c" * 300) == "a\ufffdb\ufffd" + "c" * 124 + "\u2026"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no file /srv/a/b.json here", "no file <path> here"),
        ("'/tmp/x/y' is missing", "'<path>' is missing"),
        ("~/adapters/sql is no folder", "<path> is no folder"),
        ("org/adapter has rank 8/16", "org/adapter has rank 8/16"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_paths_are_taken_out_and_names_are_kept(text: str, clean: str) -> None:
    assert without_paths(text) == clean
