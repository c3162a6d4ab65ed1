"""Bucket: one bucket and the s3fs client that asks for its objects, one request per question.

Neither botocore nor s3fs asks again: the core does. The client is made at the first question, on the loop that asks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import s3fs
from botocore.exceptions import NoCredentialsError
from botocore.session import Session

from loramux.errors import ConfigInvalid
from loramux_s3.faults import translated

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 15  # between two pieces of an answer, not for all of it
_ADDRESSING_STYLES = {None: "auto", True: "path", False: "virtual"}


class Bucket:
    """Credentials are found as every AWS client finds them: variables, `~/.aws`, the role of the machine or pod."""

    def __init__(
        self,
        name: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        is_anonymous: bool = False,
        is_path_style: bool | None = None,
    ) -> None:
        """Connect to nothing yet. `is_path_style`: None leaves it to botocore, which uses paths for other endpoints."""
        self.name = name
        self.endpoint_url = endpoint_url
        self._settings = {
            "anon": is_anonymous,
            "endpoint_url": endpoint_url,
            "profile": profile,
            "client_kwargs": {"region_name": region},
            "config_kwargs": {
                "retries": {"total_max_attempts": 1, "mode": "standard"},  # whatever the environment says
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "read_timeout": READ_TIMEOUT_SECONDS,
                "s3": {"addressing_style": _ADDRESSING_STYLES[is_path_style]},
            },
        }
        self._file_system = self._new_file_system()
        self._client: Any = None  # s3fs and botocore have no types

    @classmethod
    def from_options(cls, name: str, options: Mapping[str, str]) -> Bucket:
        """Read the options of the resolver; raises ConfigInvalid."""
        is_anonymous = _switch("anonymous", options) or False
        return cls(
            name,
            endpoint_url=_endpoint(options.get("endpoint_url")),
            region=options.get("region") or None,
            profile=_profile(options.get("profile"), is_anonymous=is_anonymous),
            is_anonymous=is_anonymous,
            is_path_style=_switch("path_style", options),
        )

    @asynccontextmanager
    async def request(self, operation: str, arguments: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
        """Ask for one object, by its `Key` and perhaps its version, and yield what botocore makes of the answer.

        Raises ObjectMissing, SourceChanged or ResolverFailed, also for what goes wrong while the body is read.
        """
        with translated(f"s3://{self.name}/{arguments['Key']}"):
            found = await self._call(operation, arguments)
            try:
                yield found
            finally:
                if "Body" in found:
                    found["Body"].close()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _call(self, operation: str, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            self._client = await self._file_system.set_session()
            # Not s3fs's own call: it sleeps after a fault, and its errors no longer tell the status and the headers.
            call = getattr(self._client, operation)
            found: Mapping[str, Any] = await call(Bucket=self.name, ChecksumMode="ENABLED", **arguments)
        except NoCredentialsError:
            self._file_system = self._new_file_system()  # a client looks for them only once
            raise
        return found

    def _new_file_system(self) -> Any:
        return s3fs.S3FileSystem(asynchronous=True, skip_instance_cache=True, **self._settings)


def _endpoint(url: str | None) -> str | None:
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ConfigInvalid("resolver option s3.endpoint_url must be http(s)://HOST[:PORT], without credentials")
    return url


def _profile(name: str | None, *, is_anonymous: bool) -> str | None:
    if not name:
        return None
    if is_anonymous:
        raise ConfigInvalid(f"resolver options s3.anonymous and s3.profile={name!r} exclude each other; set one")
    known = Session().available_profiles
    if name not in known:
        raise ConfigInvalid(f"resolver option s3.profile={name!r} must be one of: {', '.join(known) or 'none found'}")
    return name


def _switch(option: str, options: Mapping[str, str]) -> bool | None:
    value = options.get(option)
    if not value:
        return None
    if value.lower() not in ("true", "1", "false", "0"):
        raise ConfigInvalid(f"resolver option s3.{option}={value!r} must be true or false")
    return value.lower() in ("true", "1")
