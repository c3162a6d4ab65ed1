"""Adapters in a bucket, resolvers that look for them, and faults that must not show a secret."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from faulty_s3 import FaultyS3
from loramux.errors import LoramuxError, ResolverFailed
from loramux.lora.remote import RemoteAdapter, RemoteFile
from loramux_s3 import S3LoRAResolver

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-access-key",
    "AWS_SESSION_TOKEN": "canary-session-token",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Adapters:
    """A bucket that is asked through a proxy, and filled without it."""

    bucket: str
    proxy: FaultyS3
    client: Any

    def put(self, key: str, content: bytes, **extra: str) -> str:
        """Store one object; return its version."""
        stored = self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **extra)
        return str(stored.get("VersionId", ""))

    def put_with_sha256(self, key: str, content: bytes) -> str:
        """Store one object with a checksum; return that."""
        stored = self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256")
        return str(stored["ChecksumSHA256"])

    def put_adapter(self, folder: str, config: bytes = b"{}", weights: bytes = b"weights") -> None:
        self.put(f"{folder}/adapter_model.safetensors", weights)
        self.put(f"{folder}/adapter_config.json", config)

    def delete(self, key: str, **version: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key, **version)

    def resolver(self, path: str = "adapters/{lora_name}", **options: str) -> S3LoRAResolver:
        options = {"url": f"s3://{self.bucket}/{path}", "endpoint_url": self.proxy.url, **options}
        resolver = S3LoRAResolver.from_config(options)
        assert resolver is not None
        return resolver

    def run(self, work: Callable[[S3LoRAResolver], Awaitable[T]], resolver: S3LoRAResolver | None = None) -> T:
        """Do something with a resolver on a loop of its own, and close it there."""
        resolver = resolver or self.resolver()

        async def work_and_close() -> T:
            try:
                return await work(resolver)
            finally:
                await resolver.aclose()

        return asyncio.run(work_and_close())

    def locate(self, name: str = "team/sql", resolver: S3LoRAResolver | None = None) -> RemoteAdapter | None:
        return self.run(lambda it: it.locate("base", name), resolver)

    def found(self, name: str = "team/sql") -> RemoteAdapter:
        found = self.locate(name)
        assert found is not None
        return found

    def download(self, file: RemoteFile, destination: Path) -> bytes:
        self.run(lambda it: it.download(file, destination))
        return destination.read_bytes()

    def fault_of(self, question: Callable[[], object]) -> ResolverFailed:
        """Return the fault that a question ends in: no call was made twice, and nothing secret is shown."""
        num_calls = len(self.proxy.calls)
        with pytest.raises(ResolverFailed) as failure:
            question()
        calls = self.proxy.calls[num_calls:]
        assert len(set(calls)) == len(calls), f"asked again: {calls}"
        assert_shows_no_secret(failure.value)
        return failure.value


def assert_shows_no_secret(error: LoramuxError) -> None:
    shown = f"{error} {error!r}"
    assert "canary" not in shown.lower(), shown
