"""The MLflow plugin against real MLflow servers, filled by MLflow's own client; `make test-mlflow` runs this."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from loramux.errors import ResolverFailed, SourceChanged
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import RemoteResolverContract

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 3_000_001}
START_SECONDS = 120

_numbers = itertools.count()


@contextmanager
def running_server(folder: Path, *arguments: str) -> Iterator[str]:
    """Run `mlflow server` on a free port, with a database and artifacts below the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        *("server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts"), *arguments),
    ]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
    try:
        await_health(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def await_health(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except urllib.error.HTTPError as exc:
            exc.close()
        except OSError:
            pass
        else:
            return
        time.sleep(0.1)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()[-3000:]}")


@dataclass(frozen=True)
class Filled:
    """A server and MLflow's client; `source` holds an adapter in `peft`, and one at its root."""

    url: str
    client: MlflowClient
    experiment: str
    source: Path

    def model(self, name: str | None = None) -> str:
        """Register a model under a name that is not taken."""
        name = name or f"model-{next(_numbers)}"
        self.client.create_registered_model(name)
        return name

    def add_version(self, model: str, *, alias: str | None = None, source: str | None = None) -> str:
        """Log the files anew as a run's artifacts, and register them."""
        run = self.client.create_run(self.experiment).info
        self.client.log_artifacts(run.run_id, str(self.source), "model")
        source = source or f"{run.artifact_uri}/model"
        version = str(self.client.create_model_version(model, source, run.run_id).version)
        if alias is not None:
            self.client.set_registered_model_alias(model, alias, version)
        return version


def fill(url: str, folder: Path) -> Filled:
    source = folder / "model"
    (source / "peft").mkdir(parents=True)
    for name, content in FILES.items():
        (source / "peft" / name).write_bytes(content)
        (source / name).write_bytes(content)
    mlflow.set_tracking_uri(url)
    client = MlflowClient(url)
    return Filled(url, client, client.create_experiment("adapters"), source)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Return a server that anybody may ask."""
    folder = tmp_path_factory.mktemp("mlflow")
    with running_server(folder) as url:
        yield fill(url, folder)


@pytest.fixture(scope="module")
def known_model(filled: Filled) -> str:
    """Return a model with one version, `prod`."""
    model = filled.model()
    filled.add_version(model, alias="prod")
    return model


class TestContract(RemoteResolverContract):
    @pytest.fixture
    def resolver(self, asked, filled: Filled) -> LoRAResolver:
        return asked(filled.url).resolver()

    @pytest.fixture
    def known_name(self, known_model: str) -> str:
        return f"{known_model}@prod"

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return FILES


@pytest.mark.parametrize("name", ["nobody@prod", "nobody@3", "{}@canary", "{}@99", "{}@0", "{}@999999999", "{}"])
def test_what_the_registry_does_not_have_is_a_miss(asked, filled: Filled, known_model: str, name: str) -> None:
    assert asked(filled.url).locate(name.format(known_model)) is None


def test_a_version_and_the_newest_can_be_named(asked, filled: Filled, known_model: str) -> None:
    server = asked(filled.url, {"default_alias": "prod"})
    found = {server.found(name).revision for name in (known_model, f"{known_model}@1", f"{known_model}@latest")}
    assert len(found) == 1


def test_a_moved_alias_is_another_revision_and_moves_back(asked, filled: Filled) -> None:
    model, server = filled.model(), asked(filled.url)
    filled.add_version(model, alias="prod")
    first = server.found(f"{model}@prod")
    filled.add_version(model, alias="prod")
    second = server.found(f"{model}@prod")
    assert (first.root, second.root) == (f"models:/{model}/1/peft", f"models:/{model}/2/peft")
    assert first.revision != second.revision
    filled.client.set_registered_model_alias(model, "prod", "1")
    assert server.found(f"{model}@prod").revision == first.revision


def test_an_alias_that_moves_moves_no_file_of_a_download(asked, filled: Filled, tmp_path: Path) -> None:
    model, server = filled.model(), asked(filled.url)
    filled.add_version(model, alias="prod")
    found = server.found(f"{model}@prod")
    (filled.source / "peft" / "adapter_model.safetensors").write_bytes(b"another")
    try:
        filled.add_version(model, alias="prod")
    finally:
        (filled.source / "peft" / "adapter_model.safetensors").write_bytes(FILES["adapter_model.safetensors"])
    assert server.download(found.weights, tmp_path / "first") == FILES["adapter_model.safetensors"]
    assert server.download(server.found(f"{model}@prod").weights, tmp_path / "second") == b"another"


def test_what_was_deleted_is_a_miss(asked, filled: Filled) -> None:
    model, server = filled.model(), asked(filled.url)
    filled.add_version(model, alias="prod")
    filled.add_version(model)
    filled.client.delete_registered_model_alias(model, "prod")
    assert server.locate(f"{model}@prod") is None
    filled.client.delete_model_version(model, "2")
    assert server.locate(f"{model}@2") is None
    filled.client.delete_registered_model(model)
    assert server.locate(f"{model}@1") is None


def test_a_number_that_is_given_again_is_another_revision(asked, filled: Filled) -> None:
    model, server = filled.model(), asked(filled.url)
    filled.add_version(model)
    before = server.found(f"{model}@1").revision
    filled.client.delete_registered_model(model)
    filled.model(model)
    filled.add_version(model)
    assert server.found(f"{model}@1").revision != before


def test_a_logged_model_of_mlflow_3_is_found(asked, filled: Filled, tmp_path: Path) -> None:
    logged = mlflow.initialize_logged_model(experiment_id=filled.experiment)
    filled.client.log_model_artifacts(logged.model_id, str(filled.source))
    mlflow.finalize_logged_model(logged.model_id, "READY")
    model = f"model-{next(_numbers)}"
    mlflow.register_model(f"models:/{logged.model_id}", model)
    found = asked(filled.url).found(f"{model}@1")
    assert asked(filled.url).download(found.config, tmp_path / "config") == FILES["adapter_config.json"]


def test_a_model_may_have_signs_in_its_name(asked, filled: Filled) -> None:
    model = filled.model("a.b+c@d_e")
    filled.add_version(model, alias="prod-2")
    assert asked(filled.url).found(f"{model}@prod-2").root == f"models:/{model}/1/peft"


def test_the_adapter_may_lie_in_the_model_itself(asked, filled: Filled, known_model: str, tmp_path: Path) -> None:
    server = asked(filled.url, {"subfolder": ""})
    found = server.found(f"{known_model}@prod")
    assert server.download(found.weights, tmp_path / "weights") == FILES["adapter_model.safetensors"]


def test_a_model_of_another_kind_is_a_miss(asked, filled: Filled, known_model: str) -> None:
    assert asked(filled.url, {"subfolder": "data"}).locate(f"{known_model}@prod") is None


def test_artifacts_that_are_gone_have_changed(asked, filled: Filled, tmp_path: Path) -> None:
    model, server = filled.model(), asked(filled.url)
    filled.add_version(model, alias="prod")
    found = server.found(f"{model}@prod")
    assert isinstance(found.weights.handle, str)
    (filled.source.parent / "artifacts" / found.weights.handle).unlink()
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors is gone"):
        server.download(found.weights, tmp_path / "weights")


def test_a_version_elsewhere_is_a_fault(asked, filled: Filled) -> None:
    model = filled.model()
    filled.add_version(model, source="s3://bucket/model")
    with pytest.raises(ResolverFailed, match="lie at s3, and are not served by") as failure:
        asked(filled.url).locate(f"{model}@1")
    assert not failure.value.retryable


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Return a server that wants a user and a password, and the name of an adapter there."""
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "test")
        patch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "canary-password")
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-password")
        with running_server(folder, "--app-name", "basic-auth") as url:
            filled = fill(url, folder)
            model = filled.model()
            filled.add_version(model, alias="prod")
            yield url, f"{model}@prod"


def test_user_and_password_open_a_guarded_server(
    asked, guarded: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, name = guarded
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-password")
    found = asked(url).found(name)
    assert asked(url).download(found.config, tmp_path / "config") == FILES["adapter_config.json"]


@pytest.mark.parametrize("password", [None, "canary-wrong"])
def test_without_them_it_is_a_fault_that_is_not_asked_again(
    asked, guarded: tuple[str, str], monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    url, name = guarded
    if password is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with pytest.raises(ResolverFailed, match=": 401") as failure:
        asked(url).locate(name)
    assert not failure.value.retryable
    assert "canary" not in str(failure.value)
