"""The MLflow plugin against scripted answers: what is asked, and what is a miss, a fault or a secret.

They are what MLflow 3.17 answers; test_mlflow_server.py asks a real one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from loramux.errors import ConfigInvalid, ResolverFailed, SourceChanged
from loramux.lora.testing import HOSTILE_NAMES
from loramux_mlflow import MlflowLoRAResolver

API = "/api/2.0/mlflow"
ALIAS = f"{API}/registered-models/alias"
VERSION = f"{API}/model-versions/get"
LOCATION = f"{API}/model-versions/get-download-uri"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
WEIGHTS = f"{ARTIFACTS}/1/run/artifacts/model/peft/adapter_model.safetensors"

MODEL_VERSION = {
    "name": "sql",
    "version": "3",
    "creation_timestamp": 1795635762577,
    "run_id": "run",
    "status": "READY",
    "source": "mlflow-artifacts:/1/run/artifacts/model",
}
FILES = [
    {"path": "adapter_config.json", "is_dir": False, "file_size": 2},
    {"path": "adapter_model.safetensors", "is_dir": False, "file_size": 7},
    {"path": "README.md", "is_dir": False, "file_size": 9},
]


@pytest.fixture
def registry(script):
    """Return a server whose model `sql` has version 3, which `prod` stands for."""
    script.answers = {
        ALIAS: (200, {"model_version": MODEL_VERSION}),
        VERSION: (200, {"model_version": MODEL_VERSION}),
        LOCATION: (200, {"artifact_uri": "mlflow-artifacts:/1/run/artifacts/model"}),
        ARTIFACTS: (200, {"files": FILES}),
        WEIGHTS: (200, b"weights"),
    }
    return script


def error(code: str) -> dict[str, str]:
    return {"error_code": code, "message": "canary words"}


def fault_of(question: Callable[[], object]) -> ResolverFailed:
    """Return the fault that a question ends in; neither secrets nor the server's own words are in it."""
    with pytest.raises(ResolverFailed) as failure:
        question()
    assert "canary" not in f"{failure.value} {failure.value!r}"
    return failure.value


def test_an_alias_costs_three_questions(asked, registry) -> None:
    found = asked(registry.url).found("sql@prod")
    assert registry.calls == [
        f"{ALIAS}?name=sql&alias=prod",
        f"{LOCATION}?name=sql&version=3",
        f"{ARTIFACTS}?path=1/run/artifacts/model/peft",
    ]
    assert found.root == "models:/sql/3/peft"
    assert found.revision.startswith("3+run+")
    assert [file.nbytes for file in found.files] == [2, 7]


def test_digits_are_a_version(asked, registry) -> None:
    asked(registry.url).found("sql@3")
    assert registry.calls[0] == f"{VERSION}?name=sql&version=3"


def test_an_alias_and_its_version_are_the_same_revision(asked, registry) -> None:
    assert asked(registry.url).found("sql@prod").revision == asked(registry.url).found("sql@3").revision


def test_without_a_default_alias_a_plain_name_is_not_asked_for(asked, registry) -> None:
    assert asked(registry.url).locate("sql") is None
    assert registry.calls == []


def test_with_a_default_alias_a_plain_name_has_it(asked, registry) -> None:
    asked(registry.url, {"default_alias": "prod"}).found("sql")
    assert registry.calls[0] == f"{ALIAS}?name=sql&alias=prod"


def test_a_model_may_have_signs_in_its_name(asked, registry) -> None:
    asked(registry.url).found("a.b+c@d_e@prod")
    assert registry.calls[0] == f"{ALIAS}?name=a.b%2Bc@d_e&alias=prod"


@pytest.mark.parametrize("name", ["team/sql@prod", "team:sql@prod", "sql@a.b", "sql@a/b", "sql@1234567890"])
def test_a_name_that_no_model_has_is_not_asked_for(asked, registry, name: str) -> None:
    assert asked(registry.url).locate(name) is None
    assert registry.calls == []


@pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("suffix", ["", "@prod"])
def test_a_hostile_name_causes_no_call(asked, registry, pattern: str, suffix: str) -> None:
    assert asked(registry.url).locate(pattern.replace("{known}", "sql@prod") + suffix) is None
    assert registry.calls == []


@pytest.mark.parametrize(("subfolder", "path"), [("", ""), ("lora/v2", "/lora/v2"), ("/lora/", "/lora")])
def test_the_adapter_may_lie_in_another_folder(asked, registry, subfolder: str, path: str) -> None:
    found = asked(registry.url, {"subfolder": subfolder}).found("sql@prod")
    assert registry.calls[2] == f"{ARTIFACTS}?path=1/run/artifacts/model{path}"
    assert found.root == f"models:/sql/3{path}"


@pytest.mark.parametrize("field", ["creation_timestamp", "run_id", "version"])
def test_another_version_is_another_revision(asked, registry, field: str) -> None:
    """So is one that has the number of a deleted one."""
    before = asked(registry.url).found("sql@prod").revision
    registry.answers[ALIAS] = (200, {"model_version": {**MODEL_VERSION, field: "7"}})
    assert asked(registry.url).found("sql@prod").revision != before


def test_files_of_another_size_are_another_revision(asked, registry) -> None:
    before = asked(registry.url).found("sql@prod").revision
    registry.answers[ARTIFACTS] = (200, {"files": [FILES[0], {**FILES[1], "file_size": 8}]})
    assert asked(registry.url).found("sql@prod").revision != before


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (ALIAS, 404, "RESOURCE_DOES_NOT_EXIST"),
        (ALIAS, 400, "INVALID_PARAMETER_VALUE"),
        (LOCATION, 404, "RESOURCE_DOES_NOT_EXIST"),
        (ARTIFACTS, 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_what_the_registry_does_not_have_is_a_miss(asked, registry, path: str, status: int, code: str) -> None:
    registry.answers[path] = (status, error(code))
    assert asked(registry.url).locate("sql@prod") is None


@pytest.mark.parametrize("files", [[], FILES[1:], [{"path": "adapter_config.json", "is_dir": True}]])
def test_a_model_without_an_adapter_is_a_miss(asked, registry, files: list[dict[str, object]]) -> None:
    registry.answers[ARTIFACTS] = (200, {"files": files} if files else {})
    assert asked(registry.url).locate("sql@prod") is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FILES[:1], "models:/sql/3/peft has adapter_config.json, but no adapter_model.safetensors"),
        ([{"path": "adapter_config.json", "is_dir": False}], "the size of adapter_config.json is not told"),
    ],
)
def test_half_an_adapter_is_a_fault(asked, registry, files: list[dict[str, object]], message: str) -> None:
    registry.answers[ARTIFACTS] = (200, {"files": files})
    fault = fault_of(lambda: asked(registry.url).locate("sql@prod"))
    assert message in str(fault)
    assert not fault.retryable


@pytest.mark.parametrize(("status", "is_retryable"), [("PENDING_REGISTRATION", True), ("FAILED_REGISTRATION", False)])
def test_a_version_that_is_not_ready_is_a_fault(asked, registry, status: str, is_retryable: bool) -> None:
    registry.answers[ALIAS] = (200, {"model_version": {**MODEL_VERSION, "status": status}})
    fault = fault_of(lambda: asked(registry.url).locate("sql@prod"))
    assert status in str(fault)
    assert fault.retryable is is_retryable


@pytest.mark.parametrize(
    ("status", "code", "is_retryable"),
    [
        (302, "", False),
        (400, "BAD_REQUEST", False),
        (401, "UNAUTHENTICATED", False),
        (403, "PERMISSION_DENIED", False),
        (404, "ENDPOINT_NOT_FOUND", False),
        (429, "REQUEST_LIMIT_EXCEEDED", True),
        (500, "INTERNAL_ERROR", True),
        (503, "TEMPORARILY_UNAVAILABLE", True),
    ],
)
@pytest.mark.parametrize("path", [ALIAS, LOCATION, ARTIFACTS])
def test_any_other_answer_is_a_fault(asked, registry, path: str, status: int, code: str, is_retryable: bool) -> None:
    registry.answers[path] = (status, error(code))
    registry.headers = {"Retry-After": "7", "Location": "/login?canary"}
    fault = fault_of(lambda: asked(registry.url).locate("sql@prod"))
    assert str(fault).endswith(f": {status} {code}".rstrip())
    assert fault.retryable is is_retryable
    assert fault.retry_after_seconds == 7


@pytest.mark.parametrize("status", [404, 400])
def test_a_page_of_something_else_is_a_fault_and_no_miss(asked, registry, status: int) -> None:
    registry.answers[ALIAS] = (status, b"<p>canary</p>")
    assert not fault_of(lambda: asked(registry.url).locate("sql@prod")).retryable


@pytest.mark.parametrize("content", [b"<p>canary</p>", {"model_version": {}}, []])
def test_an_answer_that_is_not_mlflows_is_a_fault(asked, registry, content: object) -> None:
    registry.answers[ALIAS] = (200, content)
    fault = fault_of(lambda: asked(registry.url).locate("sql@prod"))
    assert "answers with something else than MLflow" in str(fault)
    assert not fault.retryable


@pytest.mark.parametrize(
    "uri", ["s3://canary-bucket/1", "/srv/canary", "mlflow-artifacts://canary:80/1", "runs:/1/model"]
)
def test_artifacts_that_the_server_does_not_serve_are_a_fault(asked, registry, uri: str) -> None:
    registry.answers[LOCATION] = (200, {"artifact_uri": uri})
    fault = fault_of(lambda: asked(registry.url).locate("sql@prod"))
    assert "--serve-artifacts" in str(fault)
    assert not fault.retryable


def test_artifacts_at_the_server_by_name_are_found(asked, registry) -> None:
    host = registry.url.removeprefix("http://")
    registry.answers[LOCATION] = (200, {"artifact_uri": f"mlflow-artifacts://{host}/1/run/artifacts/model"})
    assert asked(registry.url).found("sql@prod").weights.nbytes == 7


def test_a_server_that_is_not_there_is_a_fault(asked) -> None:
    fault = fault_of(lambda: asked("http://127.0.0.1:1").locate("sql@prod"))
    assert "Cannot connect" in str(fault)
    assert fault.retryable


def test_a_download_that_is_cut_is_a_fault(asked, registry, tmp_path: Path) -> None:
    found = asked(registry.url).found("sql@prod")
    registry.num_sent = 3
    fault = fault_of(lambda: asked(registry.url).download(found.weights, tmp_path / "weights"))
    assert fault.retryable
    assert not isinstance(fault, SourceChanged)


def test_an_artifact_that_is_gone_has_changed(asked, registry, tmp_path: Path) -> None:
    found = asked(registry.url).found("sql@prod")
    registry.answers[WEIGHTS] = (404, error("RESOURCE_DOES_NOT_EXIST"))
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors is gone"):
        asked(registry.url).download(found.weights, tmp_path / "weights")


def test_a_file_that_is_there_already_is_not_overwritten(asked, registry, tmp_path: Path) -> None:
    found = asked(registry.url).found("sql@prod")
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        asked(registry.url).download(found.weights, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def authorization(registry) -> str | None:
    return registry.sent_headers[-1].get("Authorization")


def test_a_token_is_sent_with_every_question(asked, registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary")
    found = asked(registry.url).found("sql@prod")
    asked(registry.url).download(found.weights, tmp_path / "weights")
    assert {headers.get("Authorization") for headers in registry.sent_headers} == {"Bearer canary"}


def test_user_and_password_come_before_the_token(asked, registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    asked(registry.url).found("sql@prod")
    assert authorization(registry) == "Bearer token"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass:wörd")
    asked(registry.url).found("sql@prod")
    assert authorization(registry) == f"Basic {base64.b64encode('user:pass:wörd'.encode()).decode()}"


def test_without_credentials_none_are_sent(asked, registry) -> None:
    asked(registry.url).found("sql@prod")
    assert authorization(registry) is None


def test_a_token_that_cannot_be_sent_is_refused_at_start(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary\r\nX-Other: 1")
    with pytest.raises(ConfigInvalid, match="MLFLOW_TRACKING_TOKEN") as failure:
        asked("http://mlflow").resolver()
    assert "canary" not in str(failure.value)


@pytest.mark.parametrize(
    "url", ["mlflow:5000", "databricks", "sqlite:///db", "http://user:canary@mlflow", "http://m?x=1"]
)
def test_a_wrong_server_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"mlflow\.tracking_uri must be http") as failure:
        MlflowLoRAResolver.from_config({"tracking_uri": url})
    assert "canary" not in str(failure.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("subfolder", "../peft"), ("subfolder", "a//b"), ("default_alias", "3"), ("default_alias", "a.b")],
)
def test_a_wrong_option_is_refused_at_start(option: str, value: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"mlflow\.{option}='{value}' must be"):
        MlflowLoRAResolver.from_config({"tracking_uri": "http://mlflow", option: value})


def test_without_a_server_it_is_not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    assert MlflowLoRAResolver.from_config({"subfolder": "peft"}) is None


def test_the_screen_shows_the_server_and_the_folder(asked) -> None:
    assert asked("https://mlflow.example/prefix/").resolver().describe() == (
        "https://mlflow.example/prefix (peft of a model)"
    )


def test_its_page_lists_every_option() -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text()
    table = page.partition("| option |")[2].partition("\n\n")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(listed) == MlflowLoRAResolver.option_names


def test_it_is_found_through_its_entry_point() -> None:
    (entry_point,) = entry_points(group="loramux", name="mlflow")
    assert entry_point.load() is MlflowLoRAResolver


def test_what_else_the_version_brings_is_found_in_its_folder(asked, registry) -> None:
    registry.answers[ARTIFACTS] = (200, {"files": [*FILES, {"path": "chat_template.jinja", "file_size": 3}]})
    resolver = asked(registry.url)
    found = resolver.found("sql@prod")

    (file,) = resolver.run(lambda one: one.locate_defaults(found))

    assert (file.name, file.nbytes) == ("chat_template.jinja", 3)
    assert registry.calls[-1] == f"{ARTIFACTS}?path=1/run/artifacts/model/peft"
