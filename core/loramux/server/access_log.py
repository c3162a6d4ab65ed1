"""One line per request; only what the server knows, nothing that a caller could forge or would keep secret."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from loramux.server.request_id import request_id_of


class AccessLogger(AbstractAccessLogger):
    """Log method, route (not the raw address), status, duration and request id."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line."""
        route = "-"
        request_id = "-"
        if isinstance(request, web.Request):
            resource = request.match_info.route.resource
            route = "-" if resource is None else resource.canonical
            request_id = request_id_of(request)
        self.logger.info(
            "%s %s status=%d milliseconds=%.1f request_id=%s",
            request.method,
            route,
            response.status,
            time * 1000,
            request_id,
        )

    @property
    def enabled(self) -> bool:
        """Whether lines go anywhere."""
        return self.logger.isEnabledFor(logging.INFO)
