"""The one place where an error becomes an HTTP status, a type and a code.

Every response of 400 and above is built here from ERROR_KINDS, so the table is the whole contract with clients.
Official clients retry 408, 409, 429 and everything from 500 on by themselves: a failure that will not heal must stay
out of these statuses or say `x-should-retry: false`; one that will heal says `Retry-After`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from loramux.errors import (
    AdapterInvalid,
    AdapterLoading,
    AdapterNotFound,
    EngineDead,
    EngineOverloaded,
    LoramuxError,
    RequestInvalid,
    ResolverDenied,
    ResolverFailed,
    StoreFull,
)

LONGEST_SHOWN_VALUE = 128
LONGEST_RETRY_SECONDS = 60
"""Official clients wait for at most two minutes; a longer Retry-After makes them give up."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What all errors of one code have in common."""

    status: int
    type: str
    headers: Mapping[str, str] = field(default_factory=dict)


_DO_NOT_RETRY = {"x-should-retry": "false"}
_BEARER = {"WWW-Authenticate": "Bearer"}
_CLOSE = {"Connection": "close"}

ERROR_KINDS: Mapping[str, ErrorKind] = {
    "model_not_found": ErrorKind(404, "invalid_request_error", _DO_NOT_RETRY),
    "adapter_not_found": ErrorKind(404, "invalid_request_error", _DO_NOT_RETRY),
    "unknown_url": ErrorKind(404, "invalid_request_error"),
    "method_not_allowed": ErrorKind(405, "invalid_request_error"),
    "missing_api_key": ErrorKind(401, "authentication_error", _BEARER),
    "invalid_api_key": ErrorKind(401, "authentication_error", _BEARER),
    "insufficient_permissions": ErrorKind(403, "permission_error"),
    "malformed_request": ErrorKind(400, "invalid_request_error", _CLOSE),
    "host_not_allowed": ErrorKind(403, "permission_error"),
    "upgrade_refused": ErrorKind(400, "invalid_request_error", _CLOSE),
    "rate_limit_exceeded": ErrorKind(429, "rate_limit_error", {"Retry-After": "1"}),
    "adapter_resolution_rate_limited": ErrorKind(429, "rate_limit_error", {"Retry-After": "1"}),
    "invalid_json": ErrorKind(400, "invalid_request_error"),
    "body_timeout": ErrorKind(400, "invalid_request_error", _CLOSE),
    "missing_required_parameter": ErrorKind(400, "invalid_request_error"),
    "invalid_value": ErrorKind(400, "invalid_request_error"),
    "unsupported_parameter": ErrorKind(400, "invalid_request_error"),
    "value_above_maximum": ErrorKind(400, "invalid_request_error"),
    "context_length_exceeded": ErrorKind(400, "invalid_request_error"),
    "no_chat_template": ErrorKind(400, "invalid_request_error"),
    "adapter_invalid": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "adapter_rank_too_high": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "adapter_base_mismatch": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "adapter_format_unsupported": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "adapter_already_loaded": ErrorKind(400, "invalid_request_error"),
    "adapter_name_reserved": ErrorKind(400, "invalid_request_error"),
    "adapter_pin_refused": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "alias_conflict": ErrorKind(400, "invalid_request_error", _DO_NOT_RETRY),
    "request_too_large": ErrorKind(413, "invalid_request_error", _CLOSE),
    "unsupported_media_type": ErrorKind(415, "invalid_request_error"),
    "unsupported_encoding": ErrorKind(415, "invalid_request_error"),
    "adapter_loading": ErrorKind(503, "server_error", {"Retry-After": "2"}),
    "adapter_source_unavailable": ErrorKind(503, "server_error"),
    "adapter_store_full": ErrorKind(503, "server_error", {"Retry-After": "30"}),
    "server_overloaded": ErrorKind(503, "server_error", {"Retry-After": "1"}),
    "server_draining": ErrorKind(503, "server_error", {"Retry-After": "1", **_CLOSE}),
    "engine_unavailable": ErrorKind(503, "server_error", {"Retry-After": "5"}),
    "request_timeout": ErrorKind(504, "server_error"),
    "internal_error": ErrorKind(500, "server_error"),
}


class Refused(LoramuxError):
    """The server itself says no; `code` is a key of ERROR_KINDS."""

    def __init__(
        self, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error as the client sees it."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """The JSON object, the same for a response and for an event inside a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """Build the response."""
        return web.json_response(self.body, status=self.status, headers=self.headers)


def describe(error: BaseException, *, request_id: str) -> ErrorReply:
    """Say what the client is told about an error; one that is not ours tells nothing but the request's id."""
    match error:
        case Refused():
            return _reply(error.code, str(error), param=error.param, headers=error.headers)
        case RequestInvalid():
            code = error.code if error.code in ERROR_KINDS else "invalid_value"
            return _reply(code, str(error), param=error.param)
        case AdapterNotFound():
            return unknown_model(error.name)
        case ResolverDenied():
            return _reply("model_not_found", "The model does not exist or you do not have access to it.", param="model")
        case AdapterLoading():
            return _reply(
                "adapter_loading", f"Adapter `{shown(error.name)}` is still loading. Retry shortly.", param="model"
            )
        case AdapterInvalid():
            message = f"Adapter `{shown(error.name)}` cannot be served: {without_paths(error.reason)}"
            return _reply(error.code, message, param="model")
        case ResolverFailed():
            message = "The adapter store is temporarily unavailable. Retry later."
            return _reply("adapter_source_unavailable", message, param="model", headers=_retry_headers(error))
        case StoreFull():
            return _reply("adapter_store_full", "The adapter store is full. Retry later.", param="model")
        case EngineOverloaded():
            return _reply("server_overloaded", "The server is overloaded. Retry shortly.")
        case EngineDead():
            return _reply("engine_unavailable", "The inference engine is not running.")
        case _:
            return _reply("internal_error", f"Internal error (request id {request_id}).")


def describe_http(error: web.HTTPException, *, method: str, path: str) -> ErrorReply:
    """Say in our own shape what the HTTP layer refused."""
    match error:
        case web.HTTPNotFound():
            return _reply("unknown_url", f"Unknown request URL: {method} {shown(path)}.")
        case web.HTTPMethodNotAllowed():
            message = f"Method {method} is not allowed for {shown(path)}."
            return _reply("method_not_allowed", message, headers={"Allow": error.headers.get("Allow", "")})
        case web.HTTPRequestEntityTooLarge():
            return _reply("request_too_large", "The request body is too large.")
        case web.HTTPExpectationFailed():
            return _reply("unsupported_encoding", "The only accepted 'Expect' header is 100-continue.")
        case _:
            return _reply("invalid_value", f"The request could not be understood ({error.status}).")


def unknown_model(name: str) -> ErrorReply:
    """The answer to a model name that nothing here serves."""
    message = f"The model `{shown(name)}` does not exist or you do not have access to it."
    return _reply("model_not_found", message, param="model")


def shown(value: str) -> str:
    """Bring a value from a client to one short printable line."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value)
    if len(printable) <= LONGEST_SHOWN_VALUE:
        return printable
    return printable[:LONGEST_SHOWN_VALUE] + "\N{HORIZONTAL ELLIPSIS}"


_PATH = re.compile(r"(?<![\w.:/])~?(?:/[^\s/'\"`,;:()]+){2,}/?")


def without_paths(text: str) -> str:
    """Replace absolute paths: where files lie on the server is not the client's business."""
    return _PATH.sub("<path>", text)


def _reply(
    code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> ErrorReply:
    kind = ERROR_KINDS[code]
    return ErrorReply(kind.status, kind.type, code, message, param, {**kind.headers, **(headers or {})})


def _retry_headers(error: ResolverFailed) -> dict[str, str]:
    if not error.retryable:
        return dict(_DO_NOT_RETRY)
    seconds = math.ceil(error.retry_after_seconds or 1)
    return {"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY_SECONDS))}
