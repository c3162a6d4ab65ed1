"""What goes wrong on the way to the Hub: a fault and never a miss, said once."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

import fake_hub
from fake_hub import Fault, answered
from hub_cases import CONFIG, WEIGHTS, Adapters
from loramux.errors import ResolverFailed, SourceChanged
from loramux.lora.remote import RemoteFile
from loramux_hub import HubLoRAResolver, hub

LIMITED = '"api";r=0;t=55'

ANSWERS = [
    (answered(401), "401", False, None),
    (answered(401, "GatedRepo"), "401 GatedRepo", False, None),
    (answered(403), "403", False, None),
    (answered(403, "GatedRepo"), "403 GatedRepo", False, None),
    (answered(400), "400", False, None),
    (answered(408), "408", True, None),
    (answered(429), "429", True, None),
    (answered(429, Retry_After="7"), "429", True, 7.0),
    (answered(429, RateLimit=LIMITED), "429", True, 55.0),
    (answered(429, Retry_After="7", RateLimit=LIMITED), "429", True, 7.0),
    (answered(429, RateLimit='"api";r=9;t=55'), "429", True, None),
    (answered(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), "429", True, None),
    (answered(500), "500", True, None),
    (answered(503, Retry_After="3"), "503", True, 3.0),
    (answered(304), "304", False, None),
]
IDS = [f"{message} {retry_after}" for _, message, _, retry_after in ANSWERS]


@pytest.fixture
def weights(adapters: Adapters) -> RemoteFile:
    """The located weights of an adapter that nothing was wrong with yet."""
    return adapters.found().weights


@pytest.fixture
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "READ_TIMEOUT_SECONDS", 0.05)


@pytest.mark.parametrize(("fault", "message", "is_retryable", "retry_after"), ANSWERS, ids=IDS)
def test_an_error_answer_is_a_fault_when_locating(
    adapters: Adapters, fault: Fault, message: str, is_retryable: bool, retry_after: float | None
) -> None:
    adapters.hub.spoil("GET hub/api", fault)
    failure = adapters.fault_of(adapters.locate)
    assert str(failure) == f"resolver 'hub': hf://my-org/sql@main: {message}"
    assert (failure.retryable, failure.retry_after_seconds) == (is_retryable, retry_after)


@pytest.mark.parametrize("where", ["GET hub", "GET cdn"])
@pytest.mark.parametrize(("fault", "message", "is_retryable", "retry_after"), ANSWERS, ids=IDS)
def test_an_error_answer_is_a_fault_when_downloading(
    adapters: Adapters,
    weights: RemoteFile,
    destination: Path,
    where: str,
    fault: Fault,
    message: str,
    is_retryable: bool,
    retry_after: float | None,
) -> None:
    adapters.hub.spoil(where, fault)
    failure = adapters.fault_of(lambda: adapters.download(weights, destination))
    assert str(failure) == f"resolver 'hub': hf://my-org/sql@{adapters.sha}/{WEIGHTS}: {message}"
    assert (failure.retryable, failure.retry_after_seconds) == (is_retryable, retry_after)
    assert not destination.exists()


@pytest.mark.parametrize(
    ("status", "code"), [(404, ""), (401, "RepoNotFound"), (404, "RepoNotFound"), (404, "RevisionNotFound")]
)
def test_what_is_not_there_is_a_miss_when_locating(adapters: Adapters, status: int, code: str) -> None:
    adapters.hub.spoil("GET hub/api", answered(status, code))
    assert adapters.locate() is None


@pytest.mark.parametrize("fault", [answered(404, "EntryNotFound"), answered(401, "RepoNotFound")])
def test_what_is_gone_after_locating_has_changed(
    adapters: Adapters, weights: RemoteFile, destination: Path, fault: Fault
) -> None:
    adapters.hub.spoil("/resolve/", fault)
    failure = adapters.fault_of(lambda: adapters.download(weights, destination))
    assert isinstance(failure, SourceChanged)
    assert str(failure) == f"resolver 'hub': hf://my-org/sql@{adapters.sha}/{WEIGHTS} is gone"


def test_a_config_without_weights_is_a_fault_that_asking_again_does_not_heal(adapters: Adapters) -> None:
    sha = adapters.repo.commit({CONFIG: b"{}", "adapter_model.bin": b"pickle"})
    failure = adapters.fault_of(adapters.locate)
    assert str(failure) == f"resolver 'hub': hf://my-org/sql@{sha} has {CONFIG}, but no {WEIGHTS}"
    assert not failure.retryable


@pytest.mark.parametrize(
    "body", [b"", b"<html>canary</html>", b"{}", b'{"id": "a/b", "sha": "../../x", "siblings": []}']
)
def test_an_endpoint_that_is_no_hub_is_a_fault(adapters: Adapters, body: bytes) -> None:
    adapters.hub.spoil("GET hub/api", fake_hub.with_body(body))
    failure = adapters.fault_of(adapters.locate)
    assert f"{adapters.hub.url} answers with something else than a commit" in str(failure)
    assert not failure.retryable


def test_an_endpoint_that_nobody_serves_is_a_fault_worth_another_try(adapters: Adapters) -> None:
    with socket.socket() as unserved:
        unserved.bind(("127.0.0.1", 0))  # and never listens
        options = {"allow": "my-org/*", "endpoint": f"http://127.0.0.1:{unserved.getsockname()[1]}"}
        resolver = HubLoRAResolver.from_config(options)
        assert adapters.fault_of(lambda: adapters.locate("my-org/sql", resolver)).retryable


def test_redirects_without_end_are_a_fault(adapters: Adapters) -> None:
    adapters.hub.moved["my-org/sql"] = "my-org/sql"
    with pytest.raises(ResolverFailed, match="redirects") as failure:
        adapters.locate()
    assert not failure.value.retryable


@pytest.mark.usefixtures("_short_timeout")
@pytest.mark.parametrize("fault", [fake_hub.silent, fake_hub.hanging(3), fake_hub.cut(3)])
def test_metadata_that_does_not_come_is_a_fault_worth_another_try(adapters: Adapters, fault: Fault) -> None:
    adapters.hub.spoil("GET hub/api", fault)
    assert adapters.fault_of(adapters.locate).retryable


@pytest.mark.usefixtures("_short_timeout")
@pytest.mark.parametrize("where", ["GET hub", "GET cdn"])
def test_a_file_that_does_not_come_is_a_fault_worth_another_try(
    adapters: Adapters, weights: RemoteFile, destination: Path, where: str
) -> None:
    adapters.hub.spoil(where, fake_hub.silent)
    assert adapters.fault_of(lambda: adapters.download(weights, destination)).retryable


@pytest.mark.usefixtures("_short_timeout")
@pytest.mark.parametrize("fault", [fake_hub.hanging(3), fake_hub.cut(3)])
def test_a_body_that_ends_too_early_is_a_fault_worth_another_try(
    adapters: Adapters, weights: RemoteFile, destination: Path, fault: Fault
) -> None:
    adapters.hub.spoil("GET cdn", fault)
    assert adapters.fault_of(lambda: adapters.download(weights, destination)).retryable


@pytest.mark.parametrize("body", [b"[]", b"{", b"{} ", b""])
def test_a_config_with_other_bytes_than_the_commits_is_a_fault_worth_another_try(
    adapters: Adapters, destination: Path, body: bytes
) -> None:
    found = adapters.found()
    adapters.hub.spoil(CONFIG, fake_hub.with_body(body))
    failure = adapters.fault_of(lambda: adapters.download(found.config, destination))
    assert str(failure) == f"resolver 'hub': hf://my-org/sql@{adapters.sha}: other bytes came for {CONFIG}"
    assert failure.retryable


def test_other_weights_of_the_same_size_are_told_by_the_digest_that_the_core_compares(
    adapters: Adapters, weights: RemoteFile, destination: Path
) -> None:
    adapters.hub.spoil("GET cdn", fake_hub.with_body(b"corrupt"))
    written = adapters.download(weights, destination)
    assert len(written) == weights.nbytes
    assert hashlib.sha256(written).hexdigest() != weights.sha256


def test_offline_mode_is_a_fault_that_says_so_and_causes_no_call(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    failure = adapters.fault_of(adapters.locate)
    assert "offline mode is on (HF_HUB_OFFLINE)" in str(failure)
    assert (failure.retryable, failure.retry_after_seconds) == (True, 60)  # an outage: what is stored is served
    assert adapters.calls() == []


def test_the_variables_of_the_client_are_honoured(adapters: Adapters) -> None:
    """In a process of its own, because the client reads them when it is imported."""
    script = (
        "import asyncio; from loramux_hub import HubLoRAResolver\n"
        "resolver = HubLoRAResolver.from_config({'allow': 'my-org/*'})\n"
        "print(resolver.describe()); asyncio.run(resolver.locate('base', 'my-org/sql'))"
    )
    variables = {**os.environ, "HF_ENDPOINT": adapters.hub.url, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)
    assert process.stdout == f"my-org/* at {adapters.hub.url}\n"
    assert "not asked, because offline mode is on" in process.stderr
    assert adapters.calls() == []
