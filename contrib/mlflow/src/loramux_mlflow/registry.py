"""Registry: one MLflow server, asked over its REST API, once per question, and what its answers mean to the core.

Not MLflow's own client: that holds a thread until the server answers, repeats each question up to seven times, and
brings twenty packages, one of them at an older version than the core is tested with.

Of an error answer only status and code are shown: its own words may repeat what was sent.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from pydantic import BaseModel, Field, ValidationError
from yarl import URL

from loramux.errors import ConfigInvalid, ResolverFailed

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0  # between two pieces of an answer, not for all of it

_API = "api/2.0/mlflow"
_ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts"
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_MISSING_ALIAS = "INVALID_PARAMETER_VALUE"


class NotInRegistry(Exception):
    """The registry has no such model, version, alias or artifact; the message is its place."""


class ModelVersion(BaseModel):
    """One version of a registered model; a number is given again when the last version or the model was deleted."""

    name: str
    version: str
    status: str = "READY"
    run_id: str = ""
    creation_timestamp: int = 0


class Artifact(BaseModel):
    """One entry of a folder."""

    name: str = Field(alias="path")
    is_dir: bool = False
    nbytes: int | None = Field(default=None, alias="file_size", ge=0)


class _ModelVersionAnswer(BaseModel):
    model_version: ModelVersion


class _LocationAnswer(BaseModel):
    artifact_uri: str


class _ArtifactsAnswer(BaseModel):
    files: list[Artifact] = []


class _ErrorAnswer(BaseModel):
    error_code: str = ""


Answer = TypeVar("Answer", bound=BaseModel)


class Registry:
    """Belongs to the loop that first asks it something."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        """Take the server's URL and MLflow's own variables for its credentials; ConfigInvalid for what is wrong."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
            raise ConfigInvalid(
                "resolver option mlflow.tracking_uri must be http(s)://HOST[:PORT][/PREFIX], without credentials"
            )
        self.url = url.rstrip("/")
        self._headers = {"User-Agent": "loramux", **_authorization(environment)}
        self._session: aiohttp.ClientSession | None = None

    async def version_of_alias(self, model: str, alias: str) -> ModelVersion:
        """Return the version that an alias stands for now; raises NotInRegistry or ResolverFailed."""
        place = f"models:/{model}@{alias}"
        path = f"{_API}/registered-models/alias"
        query = {"name": model, "alias": alias}
        # The server calls an unknown alias of a known model an invalid parameter; others are not asked for.
        missing = (_MISSING, _MISSING_ALIAS)
        return _ready((await self._ask(_ModelVersionAnswer, place, path, query, missing)).model_version)

    async def version(self, model: str, number: str) -> ModelVersion:
        """Return a version by its number; raises NotInRegistry or ResolverFailed."""
        query = {"name": model, "version": number}
        place = f"models:/{model}/{number}"
        return _ready((await self._ask(_ModelVersionAnswer, place, f"{_API}/model-versions/get", query)).model_version)

    async def location(self, version: ModelVersion) -> str:
        """Return the folder of a version's artifacts; ResolverFailed when this server does not serve them."""
        query = {"name": version.name, "version": version.version}
        place = f"models:/{version.name}/{version.version}"
        answer = await self._ask(_LocationAnswer, place, f"{_API}/model-versions/get-download-uri", query)
        parts = urlsplit(answer.artifact_uri)
        if parts.scheme != "mlflow-artifacts" or parts.netloc not in ("", urlsplit(self.url).netloc):
            raise ResolverFailed(
                f"resolver 'mlflow': {place}: its artifacts lie at {parts.scheme or 'a path'}, and are not served by "
                f"{self.url}; start that with --serve-artifacts before models are logged",
                retryable=False,
            )
        return unquote(parts.path).strip("/")

    async def artifacts(self, folder: str) -> list[Artifact]:
        """Return what lies in a folder: nothing where there is no such folder; raises ResolverFailed."""
        return (await self._ask(_ArtifactsAnswer, f"mlflow-artifacts:/{folder}", _ARTIFACTS, {"path": folder})).files

    @asynccontextmanager
    async def artifact(self, path: str) -> AsyncIterator[aiohttp.StreamReader]:
        """Yield an artifact's bytes; raises NotInRegistry or ResolverFailed, also while they are read."""
        async with self._get(f"mlflow-artifacts:/{path}", f"{_ARTIFACTS}/{quote(path)}", {}, (_MISSING,)) as answer:
            yield answer.content

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(
        self,
        kind: type[Answer],
        place: str,
        path: str,
        query: Mapping[str, str],
        missing: tuple[str, ...] = (_MISSING,),
    ) -> Answer:
        async with self._get(place, path, query, missing) as answer:
            content = await answer.read()
        try:
            return kind.model_validate_json(content)
        except ValidationError as exc:
            message = f"resolver 'mlflow': {place}: {self.url} answers with something else than MLflow"
            raise ResolverFailed(message, retryable=False) from exc

    @asynccontextmanager
    async def _get(
        self, place: str, path: str, query: Mapping[str, str], missing: tuple[str, ...]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"{self.url}/{path}", encoded=True).update_query(query)
        try:
            # A redirect leads to a login page or to another scheme; the credentials do not follow it.
            async with self._connected().get(url, headers=self._headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise _fault(answer, place, await answer.content.read(1 << 16), missing)
                yield answer
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise ResolverFailed(f"resolver 'mlflow': {place}: {type(exc).__name__}: {exc}") from exc

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS
            )
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose as MLflow does: user and password where there are both, else the token."""
    user = environment.get("MLFLOW_TRACKING_USERNAME")
    password = environment.get("MLFLOW_TRACKING_PASSWORD")
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):  # the client's own error would show it
        raise ConfigInvalid("MLFLOW_TRACKING_TOKEN has characters that cannot be sent")
    return {"Authorization": f"Bearer {token}"}


def _ready(version: ModelVersion) -> ModelVersion:
    if version.status == "READY":
        return version
    raise ResolverFailed(
        f"resolver 'mlflow': models:/{version.name}/{version.version} is {version.status}",
        retryable=version.status == "PENDING_REGISTRATION",
    )


def _fault(answer: aiohttp.ClientResponse, place: str, content: bytes, missing: tuple[str, ...]) -> Exception:
    try:
        code = _ErrorAnswer.model_validate_json(content).error_code
    except ValidationError:
        code = ""
    # A 404 without MLflow's code comes from something before it, and must not look like a miss.
    if answer.status in (400, 404) and code in missing:
        return NotInRegistry(place)
    after = answer.headers.get("Retry-After", "")
    return ResolverFailed(
        f"resolver 'mlflow': {place}: {answer.status} {code}".rstrip(),
        retryable=answer.status >= 500 or answer.status in (408, 429),
        retry_after_seconds=float(after) if after.isdecimal() else None,
    )
