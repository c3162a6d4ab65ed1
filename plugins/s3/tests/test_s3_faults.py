"""What goes wrong on the way to a bucket: a fault and never a miss, said once, and never a secret in it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import faulty_s3
from faulty_s3 import Fault, answered
from loramux.errors import ResolverFailed
from loramux.lora.remote import RemoteFile
from loramux_s3 import S3LoRAResolver, bucket
from s3_cases import SECRETS, Adapters

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

ANSWERS = [
    (answered(403, "AccessDenied"), "403 AccessDenied; a key that does not exist gives this, too", False, None),
    (answered(403, "InvalidAccessKeyId"), "403 InvalidAccessKeyId", False, None),
    (answered(400, "ExpiredToken"), "400 ExpiredToken", False, None),
    (answered(400, "RequestTimeout"), "400 RequestTimeout", True, None),
    (answered(404, "NoSuchBucket"), "404 NoSuchBucket", False, None),
    (answered(404), "404", False, None),
    (answered(429), "429", True, None),
    (answered(500, "InternalError"), "500 InternalError", True, None),
    (answered(503, "SlowDown"), "503 SlowDown", True, None),
    (answered(503, "SlowDown", retry_after="7"), "503 SlowDown", True, 7.0),
    (answered(503, "SlowDown", retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), "503 SlowDown", True, None),
]
IDS = [f"{message.partition(';')[0]} {retry_after}" for _, message, _, retry_after in ANSWERS]


@pytest.fixture
def weights(adapters: Adapters) -> RemoteFile:
    """The located weights of an adapter that nothing was wrong with yet."""
    return adapters.found().weights


@pytest.fixture
def _short_timeout(weights: RemoteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on: the weights have been located in peace."""
    monkeypatch.setattr(bucket, "READ_TIMEOUT_SECONDS", 0.05)


@pytest.mark.parametrize(("fault", "message", "is_retryable", "retry_after"), ANSWERS, ids=IDS)
def test_an_error_answer_is_a_fault_when_locating(
    adapters: Adapters, fault: Fault, message: str, is_retryable: bool, retry_after: float | None
) -> None:
    adapters.proxy.spoil("GET", CONFIG, fault)
    failure = adapters.fault_of(adapters.locate)
    assert f"resolver 's3': s3://{adapters.bucket}/adapters/team/sql/{CONFIG}: {message}" in str(failure)
    assert (failure.retryable, failure.retry_after_seconds) == (is_retryable, retry_after)


@pytest.mark.parametrize(("fault", "message", "is_retryable", "retry_after"), ANSWERS, ids=IDS)
def test_an_error_answer_is_a_fault_when_downloading(
    adapters: Adapters,
    weights: RemoteFile,
    destination: Path,
    fault: Fault,
    message: str,
    is_retryable: bool,
    retry_after: float | None,
) -> None:
    adapters.proxy.spoil("GET", WEIGHTS, fault)
    failure = adapters.fault_of(lambda: adapters.download(weights, destination))
    assert message in str(failure)
    assert (failure.retryable, failure.retry_after_seconds) == (is_retryable, retry_after)
    assert not destination.exists()


@pytest.mark.parametrize(("status", "is_retryable"), [(403, False), (429, True), (500, True), (503, True)])
def test_an_error_answer_for_the_weights_is_a_fault(adapters: Adapters, status: int, is_retryable: bool) -> None:
    adapters.proxy.spoil("HEAD", WEIGHTS, answered(status))
    failure = adapters.fault_of(adapters.locate)
    assert f"{WEIGHTS}: {status}" in str(failure)
    assert failure.retryable == is_retryable


def test_a_config_without_weights_is_a_fault_that_asking_again_does_not_heal(adapters: Adapters) -> None:
    adapters.delete(f"adapters/team/sql/{WEIGHTS}")
    failure = adapters.fault_of(adapters.locate)
    assert f"{WEIGHTS} does not exist, but {CONFIG} beside it does" in str(failure)
    assert not failure.retryable


def test_weights_without_a_config_are_a_miss(adapters: Adapters) -> None:
    adapters.delete(f"adapters/team/sql/{CONFIG}")
    assert adapters.locate() is None


def test_a_bucket_that_does_not_exist_is_a_fault(adapters: Adapters) -> None:
    resolver = adapters.resolver(url="s3://no-such-bucket/{lora_name}")
    assert "404 NoSuchBucket" in str(adapters.fault_of(lambda: adapters.locate("team/sql", resolver)))


def test_an_endpoint_that_nobody_serves_is_a_fault_worth_another_try(adapters: Adapters) -> None:
    with socket.socket() as unserved:
        unserved.bind(("127.0.0.1", 0))  # and never listens
        resolver = adapters.resolver(endpoint_url=f"http://127.0.0.1:{unserved.getsockname()[1]}")
        assert adapters.fault_of(lambda: adapters.locate("team/sql", resolver)).retryable


def test_the_environment_cannot_turn_hidden_retries_on(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    adapters.proxy.spoil("GET", CONFIG, answered(503, "SlowDown"))
    adapters.fault_of(adapters.locate)
    assert len(adapters.proxy.calls) == 1


def test_the_client_waits_as_long_as_the_plugin_says(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "READ_TIMEOUT_SECONDS", 20)
    resolver = adapters.resolver()
    adapters.locate("team/sql", resolver)
    config = resolver.bucket._client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (5, 20)


@pytest.mark.usefixtures("_short_timeout")
def test_an_answer_that_does_not_come_is_a_fault_when_locating(adapters: Adapters) -> None:
    adapters.proxy.spoil("GET", CONFIG, faulty_s3.silent)
    assert adapters.fault_of(adapters.locate).retryable


@pytest.mark.usefixtures("_short_timeout")
@pytest.mark.parametrize("fault", [faulty_s3.silent, faulty_s3.hanging(3), faulty_s3.cut(3)])
def test_a_body_that_ends_too_early_is_a_fault_worth_another_try(
    adapters: Adapters, weights: RemoteFile, destination: Path, fault: Fault
) -> None:
    adapters.proxy.spoil("GET", WEIGHTS, fault)
    assert adapters.fault_of(lambda: adapters.download(weights, destination)).retryable


@pytest.mark.parametrize("body", [b"weight", b"weighty"])
def test_bytes_that_do_not_have_the_answers_own_checksum_are_a_fault(
    adapters: Adapters, weights: RemoteFile, destination: Path, body: bytes
) -> None:
    adapters.proxy.spoil("GET", WEIGHTS, faulty_s3.with_body(lambda _: body))
    assert adapters.fault_of(lambda: adapters.download(weights, destination)).retryable


def test_without_credentials_it_says_so_and_finds_them_once_they_are_there(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in SECRETS:
        monkeypatch.delenv(variable)

    async def locate_then_give_credentials(resolver: S3LoRAResolver) -> bool:
        with pytest.raises(ResolverFailed, match="Unable to locate credentials") as failure:
            await resolver.locate("base", "team/sql")
        assert not failure.value.retryable
        for variable, secret in SECRETS.items():
            monkeypatch.setenv(variable, secret)
        return await resolver.locate("base", "team/sql") is not None

    assert adapters.run(locate_then_give_credentials)
