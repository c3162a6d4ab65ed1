"""/dashboard: a page that shows the server at work, and the state and the live updates that it is made of.

The page is one file without outside assets. Its own style and script are allowed by their hashes, and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from aiohttp import web

from loramux.server.operations.dashboard_feed import FEED
from loramux.server.operations.dashboard_state import dashboard_state, now
from loramux.server.state import SERVER

MAX_QUERY = 255

_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


async def show_dashboard(_: web.Request) -> web.Response:
    """Show the page; it asks for its data by itself."""
    page, policy = _page()
    return web.Response(
        text=page, content_type="text/html", headers={**_SECURITY_HEADERS, "Content-Security-Policy": policy}
    )


async def show_state(request: web.Request) -> web.Response:
    """Answer what the page shows now, as JSON; `q` is what adapters are searched for."""
    state = {"time": now(), **dashboard_state(request.app[SERVER], _query(request))}
    return web.json_response(state, headers=_SECURITY_HEADERS)


async def send_updates(request: web.Request) -> web.StreamResponse:
    """Send the state as server-sent events, once a second, until the client leaves or the server stops."""
    return await request.app[FEED].send(request, _query(request), headers=_SECURITY_HEADERS)


def _query(request: web.Request) -> str:
    return request.query.get("q", "")[:MAX_QUERY]


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets its own style and script run."""
    page = files("loramux.server.operations").joinpath("dashboard.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(page, 'script')}; style-src {_hashes(page, 'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hashes(page: str, tag: str) -> str:
    blocks = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
