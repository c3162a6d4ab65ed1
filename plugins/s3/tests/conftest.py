"""A real S3 API on 127.0.0.1, with buckets to fill and a faulty proxy before it."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import pytest
from moto.server import ThreadedMotoServer

from faulty_s3 import FaultyS3
from s3_cases import SECRETS, Adapters

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _own_aws_environment(monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    set_environment(monkeypatch, nowhere)


def set_environment(monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    """Forget what this machine says about AWS and proxies."""
    for variable in os.environ:
        if variable.startswith(("AWS_", "BOTO_")) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for variable, secret in SECRETS.items():
        monkeypatch.setenv(variable, secret)


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder, in place of `~/.aws`."""
    return tmp_path_factory.mktemp("aws")


@pytest.fixture(scope="session", autouse=True)
def _one_model_for_all_clients() -> Iterator[None]:
    """Every test makes clients, and each would read the model of S3's API anew, for longer than all else takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Return where a real S3 API listens."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_server: tuple[str, int], nowhere: Path) -> Iterator[Any]:
    """Return a client that goes past the proxy."""
    host, port = s3_server
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_environment(monkeypatch, nowhere)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    yield client
    client.close()


@pytest.fixture
def make_bucket(s3_server: tuple[str, int], s3_client: Any) -> Iterator[Callable[..., Adapters]]:
    """Make a bucket of its own for a test; what asked for a listing fails it at the end."""
    with FaultyS3.running(s3_server) as proxy:

        def make(*, is_versioned: bool) -> Adapters:
            bucket = f"bucket-{next(_numbers)}"
            s3_client.create_bucket(Bucket=bucket)
            if is_versioned:
                s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
            return Adapters(bucket, proxy, s3_client)

        yield make
        listings = [call for call in proxy.calls if call.count("/") < 3]
    assert not listings


@pytest.fixture
def adapters(make_bucket: Callable[..., Adapters]) -> Adapters:
    """Return a bucket without versions that holds the adapter `team/sql`."""
    adapters = make_bucket(is_versioned=False)
    adapters.put_adapter("adapters/team/sql")
    return adapters


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """Return where a file may be written that does not exist yet."""
    return tmp_path / "download"
