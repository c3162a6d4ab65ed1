"""The fsspec plugin against a real web server: what is asked, and what its answers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec.config
import pytest

from loramux.errors import ResolverFailed, SourceChanged
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import RemoteResolverContract

CONFIG = "/adapters/team/sql/adapter_config.json"
WEIGHTS = "/adapters/team/sql/adapter_model.safetensors"


@pytest.fixture
def adapters(web):
    """Return the server with one adapter."""
    web.put_adapter("/adapters/team/sql")
    return web


def fault_of(question: Callable[[], object]) -> ResolverFailed:
    """Return the fault that a question ends in; the server's own words are not in it."""
    with pytest.raises(ResolverFailed) as failure:
        question()
    assert "canary" not in f"{failure.value} {failure.value!r}"
    return failure.value


class TestContract(RemoteResolverContract):
    @pytest.fixture
    def resolver(self, web) -> LoRAResolver:
        web.put_adapter("/adapters/team/sql", weights=b"w" * 9_000_001)
        return web.place.resolver()

    @pytest.fixture
    def known_name(self) -> str:
        return "team/sql"

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 9_000_001}


def test_a_file_is_read_once_and_looked_at_before_and_after(adapters, tmp_path: Path) -> None:
    found = adapters.place.found()
    assert adapters.calls == [f"HEAD {CONFIG}", f"HEAD {WEIGHTS}"]
    adapters.calls.clear()
    assert adapters.place.download(found.weights, tmp_path / "weights") == b"weights"
    assert adapters.calls == [f"HEAD {WEIGHTS}", f"GET {WEIGHTS}", f"HEAD {WEIGHTS}"]


def test_a_name_that_is_not_there_is_a_miss(adapters) -> None:
    assert adapters.place.locate("nobody") is None
    assert {call.partition(" ")[2] for call in adapters.calls} == {"/adapters/nobody/adapter_config.json"}


@pytest.mark.parametrize("name", ["a+b", "a@b", "a:b", "a.b/c-d_e", "x" * 255])
def test_a_name_is_its_own_path(web, name: str) -> None:
    web.put_adapter(f"/adapters/{name}", config=b"[1]")
    found = web.place.found(name)
    assert found.config.nbytes == 3
    assert found.root == f"{web.url}/adapters/{name}"


@pytest.mark.parametrize("path", [CONFIG, WEIGHTS])
def test_the_revision_changes_when_either_file_does(adapters, path: str) -> None:
    before = adapters.place.found().revision
    adapters.files[path] = b"replace"
    assert adapters.place.found().revision != before


def test_a_replaced_file_has_changed_before_a_byte_is_read(adapters, tmp_path: Path) -> None:
    found = adapters.place.found()
    adapters.files[WEIGHTS] = b"another, and longer"
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors has been replaced"):
        adapters.place.download(found.weights, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_deleted_file_has_changed(adapters, tmp_path: Path) -> None:
    found = adapters.place.found()
    del adapters.files[WEIGHTS]
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors is gone"):
        adapters.place.download(found.weights, tmp_path / "weights")


def test_a_time_will_do_where_there_is_no_etag(adapters) -> None:
    adapters.has_etags = False
    adapters.headers["Last-Modified"] = "Wed, 25 Nov 2026 12:00:00 GMT"
    before = adapters.place.found().revision
    adapters.headers["Last-Modified"] = "Wed, 25 Nov 2026 12:00:01 GMT"
    assert adapters.place.found().revision != before


def test_a_server_that_tells_nothing_that_changes_is_refused(adapters) -> None:
    adapters.has_etags = False
    fault = fault_of(lambda: adapters.place.locate())
    assert "no version, checksum or time is told" in str(fault)
    assert not fault.retryable


def test_a_server_that_tells_no_size_is_refused(adapters) -> None:
    adapters.has_sizes = False
    fault = fault_of(lambda: adapters.place.locate())
    assert "size is not told" in str(fault)
    assert not fault.retryable


def test_weights_that_are_missing_beside_a_config_are_a_fault(adapters) -> None:
    del adapters.files[WEIGHTS]
    fault = fault_of(lambda: adapters.place.locate())
    assert "adapter_model.safetensors does not exist, but adapter_config.json beside it does" in str(fault)
    assert not fault.retryable


@pytest.mark.parametrize("status", [404, 410])
def test_these_answers_are_a_miss(adapters, status: int) -> None:
    adapters.statuses[CONFIG] = status
    assert adapters.place.locate() is None


@pytest.mark.parametrize(
    ("status", "is_retryable"), [(400, False), (401, False), (403, False), (408, True), (429, True), (503, True)]
)
@pytest.mark.parametrize("path", [CONFIG, WEIGHTS])
def test_any_other_answer_is_a_fault(adapters, path: str, status: int, is_retryable: bool) -> None:
    adapters.statuses[path] = status
    adapters.headers["Retry-After"] = "7"
    fault = fault_of(lambda: adapters.place.locate())
    assert str(fault) == f"resolver 'fsspec': {adapters.url}{path}: {status}"
    assert fault.retryable is is_retryable
    assert fault.retry_after_seconds == 7


def test_a_server_that_is_not_there_is_a_fault(adapters) -> None:
    adapters.url = "http://127.0.0.1:1"
    fault = fault_of(lambda: adapters.place.locate())
    assert "Cannot connect" in str(fault)
    assert fault.retryable


def test_a_connection_that_is_cut_is_a_fault_and_no_short_file(adapters, tmp_path: Path) -> None:
    found = adapters.place.found()
    adapters.num_sent = 3
    fault = fault_of(lambda: adapters.place.download(found.weights, tmp_path / "weights"))
    assert fault.retryable
    assert not isinstance(fault, SourceChanged)


def test_what_fsspec_is_configured_with_is_sent(adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer canary"}})
    assert adapters.place.locate() is not None
    assert adapters.sent_headers[0]["Authorization"] == "Bearer canary"


def test_a_password_in_the_url_is_sent_and_not_shown(adapters) -> None:
    url = adapters.url
    adapters.url = url.replace("http://", "http://user:canary@")
    found = adapters.place.found()
    assert adapters.sent_headers[0]["Authorization"].startswith("Basic ")
    assert found.root == f"{url}/adapters/team/sql"
    adapters.statuses[CONFIG] = 401
    fault_of(lambda: adapters.place.locate())
