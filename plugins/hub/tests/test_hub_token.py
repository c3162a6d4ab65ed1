"""The token goes to the Hub and nowhere else: not to the CDN, not into a log, not into an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from fake_hub import SIGNATURE, answered
from hub_cases import TOKEN, WEIGHTS, Adapters


@pytest.fixture
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    client_logger = logging.getLogger("huggingface_hub")
    level, propagates = client_logger.level, client_logger.propagate
    client_logger.setLevel(logging.DEBUG)
    client_logger.propagate = True
    with caplog.at_level(logging.DEBUG):
        yield
    client_logger.setLevel(level)
    client_logger.propagate = propagates


def authorizations(adapters: Adapters, *, is_cdn: bool) -> set[str | None]:
    return {call.headers.get("authorization") for call in adapters.hub.calls if call.is_cdn == is_cdn}


def test_the_token_is_sent_to_the_hub_and_not_to_the_cdn(adapters: Adapters, destination: Path) -> None:
    adapters.download(adapters.found().weights, destination)
    assert authorizations(adapters, is_cdn=False) == {f"Bearer {TOKEN}"}
    assert authorizations(adapters, is_cdn=True) == {None}


def test_a_token_file_is_read_each_time(
    adapters: Adapters, hf_home: Path, monkeypatch: pytest.MonkeyPatch, destination: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (hf_home / "token").write_text("first-token\n")
    found = adapters.found()
    (hf_home / "token").write_text("second-token\n")
    adapters.download(found.config, destination)
    assert [call.headers.get("authorization") for call in adapters.hub.calls] == [
        "Bearer first-token",
        "Bearer second-token",
    ]


@pytest.mark.parametrize("is_forbidden", [True, False])
def test_without_a_token_or_with_one_that_may_not_be_sent_none_is(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, is_forbidden: bool
) -> None:
    if is_forbidden:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    else:
        monkeypatch.delenv("HF_TOKEN")
    assert adapters.locate() is not None
    assert authorizations(adapters, is_cdn=False) == {None}


@pytest.mark.parametrize("token", ["hf_canary\x01x", "hf_canary\u00e9"])
def test_a_token_that_cannot_be_sent_is_not_shown_by_the_error(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    failure = adapters.fault_of(adapters.locate)
    assert "the token has characters that cannot be sent" in str(failure)
    assert (failure.__cause__, failure.retryable) == (None, False)
    assert adapters.calls() == []


@pytest.mark.usefixtures("_all_is_logged")
def test_no_log_has_the_token(adapters: Adapters, destination: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = adapters.found()
    adapters.download(found.weights, destination)
    adapters.hub.spoil(WEIGHTS, answered(403))
    adapters.fault_of(lambda: adapters.download(found.weights, destination.with_name("again")))
    assert "authenticated: True" in caplog.text
    assert TOKEN not in caplog.text


def test_no_log_has_a_signed_url_unless_debugging(
    adapters: Adapters, destination: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        adapters.download(adapters.found().weights, destination)
    assert SIGNATURE in adapters.calls()[-1]
    assert SIGNATURE not in caplog.text
