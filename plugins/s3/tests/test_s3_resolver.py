"""The S3 plugin against a real S3 API over HTTP: what is found, what is pinned, and where it is looked for."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import faulty_s3
import loramux_s3
from loramux.errors import ConfigInvalid, SourceChanged
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import HOSTILE_NAMES, RemoteResolverContract
from loramux_s3 import S3LoRAResolver
from s3_cases import Adapters

CONFIG = "adapters/team/sql/adapter_config.json"
WEIGHTS = "adapters/team/sql/adapter_model.safetensors"

DEFAULTS = {"chat_template.jinja": b"{{ messages }}", "generation_config.json": b"{}"}


class TestContract(RemoteResolverContract):
    @pytest.fixture(params=[True, False], ids=["versions", "no-versions"])
    def resolver(self, request: pytest.FixtureRequest, make_bucket: Callable[..., Adapters]) -> LoRAResolver:
        adapters = make_bucket(is_versioned=request.param)
        adapters.put_adapter("adapters/team/sql", weights=b"w" * 3_000_001)
        for name, content in DEFAULTS.items():
            adapters.client.put_object(Bucket=adapters.bucket, Key=f"adapters/team/sql/{name}", Body=content)
        return adapters.resolver()

    @pytest.fixture
    def known_name(self) -> str:
        return "team/sql"

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 3_000_001}

    @pytest.fixture
    def known_defaults(self) -> Mapping[str, bytes]:
        return DEFAULTS


def test_each_file_is_asked_for_by_its_key_once_to_locate_and_once_to_download(
    adapters: Adapters, tmp_path: Path
) -> None:
    found = adapters.found()
    for file in found.files:
        adapters.download(file, tmp_path / file.name)
    assert adapters.proxy.calls == [
        f"GET /{adapters.bucket}/{CONFIG}",
        f"HEAD /{adapters.bucket}/{WEIGHTS}",
        f"GET /{adapters.bucket}/{CONFIG}",
        f"GET /{adapters.bucket}/{WEIGHTS}",
    ]


def test_a_name_that_is_not_there_costs_one_call(adapters: Adapters) -> None:
    assert adapters.locate("nobody") is None
    assert adapters.proxy.calls == [f"GET /{adapters.bucket}/adapters/nobody/adapter_config.json"]


@pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_hostile_name_causes_no_call(adapters: Adapters, pattern: str) -> None:
    assert adapters.locate(pattern.replace("{known}", "team/sql")) is None
    assert adapters.proxy.calls == []


@pytest.mark.parametrize("name", ["a+b", "a@b", "a:b", "a.b/c-d_e", "x" * 255])
def test_a_name_is_its_own_key(adapters: Adapters, name: str) -> None:
    adapters.put_adapter(f"adapters/{name}", config=b"[1]")
    assert adapters.found(name).config.nbytes == 3
    assert adapters.found(name).root == f"s3://{adapters.bucket}/adapters/{name}"


def test_a_revision_in_the_url_is_filled_from_the_name(adapters: Adapters) -> None:
    adapters.put_adapter("sql/v2/base")
    resolver = adapters.resolver("{lora_name}/{revision}/{base_model_name}")
    found = adapters.locate("sql@v2", resolver)
    assert found is not None
    assert found.root == f"s3://{adapters.bucket}/sql/v2/base"


@pytest.mark.parametrize("key", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("is_versioned", [True, False])
def test_the_revision_changes_when_either_file_does(
    make_bucket: Callable[..., Adapters], key: str, is_versioned: bool
) -> None:
    adapters = make_bucket(is_versioned=is_versioned)
    adapters.put_adapter("adapters/team/sql")
    before = adapters.found().revision
    adapters.put(key, b"another")
    assert adapters.found().revision != before


def test_with_versions_a_replaced_file_is_downloaded_as_it_was_located(
    make_bucket: Callable[..., Adapters], destination: Path
) -> None:
    adapters = make_bucket(is_versioned=True)
    adapters.put_adapter("adapters/team/sql")
    found = adapters.found()
    adapters.put(WEIGHTS, b"another")
    adapters.delete(WEIGHTS)
    assert adapters.download(found.weights, destination) == b"weights"


def test_with_versions_one_that_was_removed_for_good_has_changed(
    make_bucket: Callable[..., Adapters], destination: Path
) -> None:
    adapters = make_bucket(is_versioned=True)
    adapters.put_adapter("adapters/team/sql")
    version = adapters.put(WEIGHTS, b"weights")
    found = adapters.found()
    adapters.delete(WEIGHTS, VersionId=version)
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors is gone"):
        adapters.download(found.weights, destination)


def test_without_versions_a_replaced_file_has_changed(adapters: Adapters, destination: Path) -> None:
    found = adapters.found()
    adapters.put(WEIGHTS, b"another")
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors has been replaced"):
        adapters.download(found.weights, destination)
    assert not destination.exists()


def test_without_versions_a_deleted_file_has_changed(adapters: Adapters, destination: Path) -> None:
    found = adapters.found()
    adapters.delete(WEIGHTS)
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors is gone"):
        adapters.download(found.weights, destination)


def test_the_version_null_is_no_pin_because_it_can_be_overwritten(adapters: Adapters, destination: Path) -> None:
    adapters.proxy.spoil("HEAD", "", faulty_s3.with_headers(x_amz_version_id="null"))
    found = adapters.found()
    adapters.put(WEIGHTS, b"another")
    with pytest.raises(SourceChanged):
        adapters.download(found.weights, destination)


def test_a_sha256_that_the_bucket_has_is_told_as_hex(adapters: Adapters) -> None:
    adapters.put_with_sha256(CONFIG, b"{ }")
    adapters.put_with_sha256(WEIGHTS, b"weights")
    assert [file.sha256 for file in adapters.found().files] == [
        hashlib.sha256(b"{ }").hexdigest(),
        hashlib.sha256(b"weights").hexdigest(),
    ]


@pytest.mark.parametrize("kind", [{"x_amz_checksum_sha256": "{}-2"}, {"x_amz_checksum_type": "COMPOSITE"}])
def test_the_checksum_of_a_multipart_upload_is_no_digest(adapters: Adapters, kind: dict[str, str]) -> None:
    checksum = adapters.put_with_sha256(WEIGHTS, b"weights")
    kind = {name: value.format(checksum) for name, value in kind.items()}
    adapters.proxy.spoil("HEAD", WEIGHTS, faulty_s3.with_headers(**kind))
    assert adapters.found().weights.sha256 is None


def test_a_file_that_is_there_already_is_not_overwritten(adapters: Adapters, destination: Path) -> None:
    destination.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        adapters.download(adapters.found().weights, destination)
    assert destination.read_bytes() == b"mine"


def test_an_empty_file_is_downloaded_too(adapters: Adapters, destination: Path) -> None:
    adapters.put(WEIGHTS, b"")
    assert adapters.download(adapters.found().weights, destination) == b""


def test_a_cancelled_download_first_ends_the_write_that_it_has_begun(
    adapters: Adapters, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thread would go on in a folder that the core is about to remove."""
    found = adapters.found()
    has_begun, may_end = threading.Event(), threading.Event()
    write = loramux_s3._write_at_once

    def held_up(*arguments: Any) -> None:
        has_begun.set()
        may_end.wait()
        write(*arguments)

    monkeypatch.setattr(loramux_s3, "_write_at_once", held_up)

    async def cancel(resolver: S3LoRAResolver) -> None:
        download = asyncio.create_task(resolver.download(found.weights, destination))
        await asyncio.to_thread(has_begun.wait)
        download.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not download.done()
        may_end.set()
        await asyncio.wait({download})
        assert download.cancelled()
        assert await asyncio.to_thread(destination.read_bytes) == b""

    adapters.run(cancel)


def test_a_resolver_can_be_used_again_after_it_was_closed(adapters: Adapters) -> None:
    async def close_and_locate(resolver: S3LoRAResolver) -> bool:
        await resolver.locate("base", "team/sql")
        await resolver.aclose()
        return await resolver.locate("base", "team/sql") is not None

    assert adapters.run(close_and_locate)


def authorization(adapters: Adapters) -> str:
    return adapters.proxy.sent_headers[-1].get("authorization", "")


def test_an_anonymous_resolver_sends_no_credentials(adapters: Adapters) -> None:
    adapters.put(CONFIG, b"{}", ACL="public-read")
    adapters.put(WEIGHTS, b"weights", ACL="public-read")
    assert adapters.locate("team/sql", adapters.resolver(anonymous="true")) is not None
    assert authorization(adapters) == ""
    assert "x-amz-security-token" not in adapters.proxy.sent_headers[-1]


def test_the_region_is_part_of_the_signature(adapters: Adapters) -> None:
    adapters.locate("team/sql", adapters.resolver(region="eu-north-1"))
    assert "/eu-north-1/s3/" in authorization(adapters)


def test_the_credentials_of_a_profile_are_used(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[other]\naws_access_key_id = OTHERKEY\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    adapters.locate("team/sql", adapters.resolver(profile="other"))
    assert "Credential=OTHERKEY/" in authorization(adapters)


@pytest.mark.parametrize(
    ("option", "url"),
    [({"path_style": "false"}, "http://{}.minio.invalid/adapters/"), ({}, "http://minio.invalid/{}/adapters/")],
)
def test_the_bucket_is_in_the_path_for_an_endpoint_unless_told_otherwise(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch, option: dict[str, str], url: str
) -> None:
    monkeypatch.setenv("http_proxy", adapters.proxy.url)
    adapters.proxy.spoil("GET", "", faulty_s3.answered(404, "NoSuchKey"))
    resolver = adapters.resolver(endpoint_url="http://minio.invalid", **option)
    assert adapters.locate("sql", resolver) is None
    assert adapters.proxy.calls[0].startswith("GET " + url.format(adapters.bucket))


def test_the_screen_shows_the_url_and_the_endpoint() -> None:
    options = {"url": "s3://bucket/{lora_name}/", "endpoint_url": "https://minio.example"}
    resolver = S3LoRAResolver.from_config(options)
    assert resolver is not None
    assert resolver.describe() == "s3://bucket/{lora_name} at https://minio.example"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("endpoint_url", "minio:9000", "s3.endpoint_url must be http"),
        ("endpoint_url", "https://key:canary@minio", "s3.endpoint_url must be http"),
        ("anonymous", "perhaps", r"s3\.anonymous='perhaps' must be true or false"),
        ("profile", "nobody", r"s3\.profile='nobody' must be one of: none found"),
        ("path_style", "yes", r"s3\.path_style='yes' must be true or false"),
    ],
)
def test_a_wrong_option_is_refused_at_start(option: str, value: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message) as failure:
        S3LoRAResolver.from_config({"url": "s3://bucket/{lora_name}", option: value})
    assert "canary" not in str(failure.value)


def test_an_anonymous_resolver_has_no_profile() -> None:
    with pytest.raises(ConfigInvalid, match="exclude each other"):
        S3LoRAResolver.from_config({"url": "s3://bucket/{lora_name}", "anonymous": "1", "profile": "dev"})


def test_without_a_url_it_is_not_configured() -> None:
    assert S3LoRAResolver.from_config({"region": "eu-north-1"}) is None


def test_it_is_asked_after_the_filesystem_and_before_others() -> None:
    assert 10 < S3LoRAResolver.priority < 50


def test_its_page_lists_every_option() -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text()
    table = page.partition("## Options")[2].partition("##")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(listed) == S3LoRAResolver.option_names


def test_it_is_found_through_its_entry_point() -> None:
    (entry_point,) = entry_points(group="loramux", name="s3")
    assert entry_point.load() is S3LoRAResolver
