"""Hub: one endpoint, asked once per question, and what its answers mean to the core.

Only the lower pieces of huggingface_hub are used: its async session (with the operator's client factory and the
offline switch) and its token. Its own download cannot be stopped while it waits, or sleeps between five or more retries
of its own, and keeps a cache; its `HfApi` holds a thread until the Hub answers. Here every question is one GET and the
redirects that the Hub sends it to, cancelling closes the connection at once, and xet is never used.

Of an error answer only status and code are shown: its own words and its URL may repeat what was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

from huggingface_hub import constants, get_async_session, get_token
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx, parse_ratelimit_headers
from pydantic import BaseModel, Field, ValidationError

from loramux.errors import ConfigInvalid, ResolverFailed

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0  # between two pieces of an answer, not for all of it

_MAY_HEAL = (
    httpx.DecodingError,
    httpx.NetworkError,
    httpx.ProxyError,
    httpx.RemoteProtocolError,
    httpx.TimeoutException,
)
_MISSING = ("RepoNotFound", "RevisionNotFound", "EntryNotFound")


class NotOnHub(Exception):
    """The Hub has no such repository, revision or file, or not for this token; the message is its place."""


class _Lfs(BaseModel):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _File(BaseModel):
    path: str = Field(alias="rfilename")
    nbytes: int = Field(alias="size", ge=0)
    git_sha1: str = Field(alias="blobId", pattern="^[0-9a-f]{40}$")
    lfs: _Lfs | None = None


class RepoInfo(BaseModel):
    """One commit: its repository under its present name, and all its files."""

    id: str
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    siblings: list[_File]


class Hub:
    """Belongs to the loop that first asks it something."""

    def __init__(self, endpoint: str) -> None:
        """Take the endpoint's URL; ConfigInvalid for anything else."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigInvalid("resolver option hub.endpoint must be http(s)://HOST[:PORT], without credentials")
        self.endpoint = endpoint.rstrip("/")
        # At INFO it logs every URL, and those that a private repository's files are redirected to are signed.
        logging.getLogger(httpx.__name__).setLevel(logging.WARNING)
        self._session = get_async_session()

    async def repo_info(self, repo_id: str, revision: str) -> RepoInfo:
        """Return the commit behind a revision; raises NotOnHub or ResolverFailed."""
        place = f"hf://{repo_id}@{revision}"
        path = f"api/models/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
        async with self._get(path, place) as answer:
            content = await answer.aread()
        try:
            return RepoInfo.model_validate_json(content)
        except ValidationError as exc:
            message = f"resolver 'hub': {place}: {self.endpoint} answers with something else than a commit"
            raise ResolverFailed(message, retryable=False) from exc

    @asynccontextmanager
    async def file(self, repo_id: str, commit: str, path: str) -> AsyncIterator[httpx.Response]:
        """Yield the answer that has a file's bytes; raises NotOnHub or ResolverFailed, also while they are read."""
        async with self._get(f"{repo_id}/resolve/{commit}/{quote(path)}", f"hf://{repo_id}@{commit}/{path}") as answer:
            yield answer

    async def close(self) -> None:
        """Close the connections."""
        await self._session.aclose()

    @asynccontextmanager
    async def _get(self, path: str, place: str) -> AsyncIterator[httpx.Response]:
        try:
            async with self._session.stream(
                "GET",
                f"{self.endpoint}/{path}",
                headers=await asyncio.to_thread(_headers),  # the token may be in a file
                timeout=(CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS),
                follow_redirects=True,  # the client leaves the token out when another host is next
            ) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _fault(answer, place)
                yield answer
        except OfflineModeIsEnabled as exc:
            message = f"resolver 'hub': {place}: not asked, because offline mode is on (HF_HUB_OFFLINE)"
            # An outage, not a refusal: what is in the store is served. Asking again at once would not help.
            raise ResolverFailed(message, retry_after_seconds=60) from exc
        except httpx.HTTPError as exc:
            message = f"resolver 'hub': {place}: {str(exc) or type(exc).__name__}"
            raise ResolverFailed(message, retryable=isinstance(exc, _MAY_HEAL)) from exc


def _headers() -> dict[str, str]:
    """Not the client's own `build_hf_headers`, which asks the Hub for a list of agents first and caches it."""
    headers = {"User-Agent": "loramux", "Accept-Encoding": "identity"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is None:
        return headers
    if not (token.isascii() and token.isprintable()):  # the client's own error would show it
        raise ResolverFailed("resolver 'hub': the token has characters that cannot be sent", retryable=False)
    return {**headers, "Authorization": f"Bearer {token}"}


def _fault(answer: httpx.Response, place: str) -> Exception:
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    if status == httpx.codes.NOT_FOUND or code in _MISSING:
        return NotOnHub(place)
    after = answer.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(answer.headers)
    seconds = float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
    return ResolverFailed(
        f"resolver 'hub': {place}: {status} {code}".rstrip(),
        retryable=status >= 500 or status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS),
        retry_after_seconds=float(after) if after.isdecimal() else seconds,
    )
