"""The id of a request: the client's own if it is sane, else ours; it is in every response and every error log line."""

from __future__ import annotations

import re
import uuid

from aiohttp import web

HEADER = "X-Request-Id"

_REQUEST_ID = web.RequestKey("request_id", str)
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(request: web.Request) -> str:
    """Give the request's id; the same one each time."""
    if _REQUEST_ID not in request:
        offered = request.headers.get(HEADER, "")
        request[_REQUEST_ID] = offered if _SANE.fullmatch(offered) else uuid.uuid4().hex
    return request[_REQUEST_ID]


def adopt_request_id(request: web.Request, offered: str | None) -> None:
    """Take the id that the body brings, unless the header has brought one."""
    if offered is not None and _SANE.fullmatch(offered) and not _SANE.fullmatch(request.headers.get(HEADER, "")):
        request[_REQUEST_ID] = offered
