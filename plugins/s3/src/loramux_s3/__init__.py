"""S3LoRAResolver: an adapter is two objects under the key that a URL template gives for its name.

What was located is pinned, by its version or else by its ETag, so that no download mixes two uploads.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramux.errors import ResolverFailed, SourceChanged
from loramux.lora.remote import (
    CONFIG_NAME,
    DEFAULTS_FILE_NAMES,
    WEIGHTS_NAME,
    RemoteAdapter,
    RemoteFile,
    RemoteLoRAResolver,
)
from loramux_s3.bucket import Bucket
from loramux_s3.faults import ObjectMissing
from loramux_s3.key_template import KeyTemplate

__all__ = ["S3LoRAResolver"]

PIECE_NBYTES = 1 << 20


class S3LoRAResolver(RemoteLoRAResolver):
    """Option `url`: `s3://bucket/prefix/{lora_name}`; the other options say where that bucket is, and who asks."""

    priority = 20
    option_names = ("url", "endpoint_url", "region", "profile", "anonymous", "path_style")

    def __init__(self, template: KeyTemplate, bucket: Bucket) -> None:
        """Take both; nothing is connected yet."""
        self.template = template
        self.bucket = bucket

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> S3LoRAResolver | None:
        """Need `url`; without it the plugin is not configured."""
        if not options.get("url"):
            return None
        template = KeyTemplate(options["url"])
        return cls(template, Bucket.from_options(template.bucket, options))

    def describe(self) -> str:
        """Show the URL, and the endpoint if there is one."""
        endpoint_url = self.bucket.endpoint_url
        return f"{self.template.url} at {endpoint_url}" if endpoint_url else self.template.url

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
        """Return the adapter if its config is there; weights that are missing then are a fault, not an unknown name."""
        folder = self.template.folder(base_model_name, lora_name)
        if folder is None:
            return None
        try:
            # Not HEAD, whose errors have no body: this one tells a missing key from a missing bucket.
            config = await self._look_up("get_object", folder, CONFIG_NAME)
        except ObjectMissing:
            return None
        try:
            weights = await self._look_up("head_object", folder, WEIGHTS_NAME)
        except ObjectMissing as exc:
            message = f"resolver 's3': {exc} does not exist, but {CONFIG_NAME} beside it does"
            raise ResolverFailed(message, retryable=False) from exc
        revision = f"{_version(config)}+{_version(weights)}"
        return RemoteAdapter(revision, f"s3://{self.template.bucket}/{folder}", config, weights)

    async def locate_defaults(self, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
        """Return those that lie under the adapter's own key."""
        folder = _pinned(adapter.config)["Key"].removesuffix(f"/{CONFIG_NAME}")
        found = []
        for name in DEFAULTS_FILE_NAMES:
            try:
                found.append(await self._look_up("head_object", folder, name))
            except ObjectMissing:
                continue
        return found

    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Write the located version; SourceChanged when it is gone or replaced."""
        try:
            async with self.bucket.request("get_object", _pinned(file)) as found:
                await _write(destination, "xb", b"")
                # Each piece is whatever came while the last one was written: the file grows as the core expects.
                async for piece in found["Body"].iter_chunks(PIECE_NBYTES):
                    await _write(destination, "ab", piece)
        except ObjectMissing as exc:
            raise SourceChanged(f"resolver 's3': {exc} is gone") from exc

    async def aclose(self) -> None:
        """Close the connections."""
        await self.bucket.close()

    async def _look_up(self, operation: str, folder: str, name: str) -> RemoteFile:
        key = f"{folder}/{name}"
        async with self.bucket.request(operation, {"Key": key}) as found:
            version = found.get("VersionId", "null")  # "null" is one that can be overwritten
            pin = {"IfMatch": found["ETag"]} if version == "null" else {"VersionId": version}
            return RemoteFile(name, found["ContentLength"], _sha256(found), {"Key": key, **pin})


def _pinned(file: RemoteFile) -> dict[str, str]:
    assert isinstance(file.handle, dict)
    return file.handle


def _version(file: RemoteFile) -> str:
    pin = _pinned(file)
    return pin["IfMatch"].strip('"') if "IfMatch" in pin else pin["VersionId"]


def _sha256(found: Mapping[str, Any]) -> str | None:
    """Return the file's digest as hex; that of a multipart upload is one over its parts, and none of the file."""
    checksum = found.get("ChecksumSHA256", "")
    if "-" in checksum or found.get("ChecksumType") == "COMPOSITE":
        return None
    return base64.b64decode(checksum).hex() or None


async def _write(destination: Path, mode: str, content: bytes) -> None:
    """Write in a thread, which a cancelled call waits for: nothing is written afterwards, and no file stays open."""
    writing = asyncio.ensure_future(asyncio.to_thread(_write_at_once, destination, mode, content))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


def _write_at_once(destination: Path, mode: str, content: bytes) -> None:
    with destination.open(mode) as file:
        file.write(content)
