"""The Hub plugin against a Hub's API over HTTP: what is found and what is pinned, and that nothing else is asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import huggingface_hub
import pytest

import fake_hub
from hub_cases import CONFIG, FILES, WEIGHTS, Adapters
from loramux.errors import ConfigInvalid, ResolverDenied
from loramux.lora.plugin_manager import PluginConfig, PluginManager
from loramux.lora.resolver import LoRAResolver
from loramux.lora.resolver_options import ResolverOptions
from loramux.lora.testing import HOSTILE_NAMES, RemoteResolverContract
from loramux_hub import HubLoRAResolver

DEFAULTS = {"chat_template.jinja": b"{{ messages }}", "generation_config.json": b"{}"}
BIG_FILES = {CONFIG: b'{"r": 8}', WEIGHTS: b"w" * 3_000_001}


class TestContract(RemoteResolverContract):
    @pytest.fixture
    def known_name(self) -> str:
        return "my-org/sql/sub@v1"

    @pytest.fixture
    def resolver(self, adapters: Adapters) -> LoRAResolver:
        files = {**BIG_FILES, **DEFAULTS}
        adapters.repo.commit({f"sub/{name}": content for name, content in files.items()}, ref="v1")
        return adapters.resolver()

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return BIG_FILES

    @pytest.fixture
    def known_defaults(self) -> Mapping[str, bytes]:
        return DEFAULTS


def test_one_call_locates_both_files_and_one_downloads_each(adapters: Adapters, destination: Path) -> None:
    found = adapters.found()
    for file in found.files:
        adapters.download(file, destination.with_name(file.name))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert adapters.calls() == [
        "GET hub/api/models/my-org/sql/revision/main?blobs=true",
        f"GET hub/my-org/sql/resolve/{adapters.sha}/{CONFIG}",
        f"GET hub/my-org/sql/resolve/{adapters.sha}/{WEIGHTS}",
        f"GET cdn/{sha256}?Signature={fake_hub.SIGNATURE}",
    ]


def test_the_metadata_tells_commit_sizes_and_the_digest_of_lfs(adapters: Adapters) -> None:
    found = adapters.found()
    assert (found.revision, found.root) == (adapters.sha, f"hf://my-org/sql@{adapters.sha}")
    assert (found.config.nbytes, found.config.sha256) == (2, None)
    assert (found.weights.nbytes, found.weights.sha256) == (7, hashlib.sha256(b"weights").hexdigest())


def test_a_folder_of_a_repository_is_an_adapter_of_its_own(adapters: Adapters, destination: Path) -> None:
    sha = adapters.repo.commit({f"a/b:c/{CONFIG}": b"[1]", f"a/b:c/{WEIGHTS}": b"sub"})
    found = adapters.found("my-org/sql/a/b:c")
    assert found.root == f"hf://my-org/sql/a/b:c@{sha}"
    assert adapters.download(found.config, destination) == b"[1]"


def test_a_branch_with_slashes_is_one_revision(adapters: Adapters) -> None:
    sha = adapters.repo.commit({**FILES, CONFIG: b"[1]"}, ref="feature/x")
    assert adapters.found("my-org/sql@feature/x").revision == sha
    assert adapters.calls() == ["GET hub/api/models/my-org/sql/revision/feature%2Fx?blobs=true"]


def test_two_revisions_live_side_by_side(adapters: Adapters, destination: Path) -> None:
    adapters.repo.refs["v1"] = adapters.sha
    new_sha = adapters.repo.commit({**FILES, WEIGHTS: b"new weights"})
    by_tag, by_sha, newest = (adapters.found(f"my-org/sql{at}") for at in ("@v1", f"@{adapters.sha}", ""))
    assert (by_tag.revision, by_sha.revision, newest.revision) == (adapters.sha, adapters.sha, new_sha)
    assert adapters.download(by_tag.weights, destination.with_name("old")) == b"weights"
    assert adapters.download(newest.weights, destination.with_name("new")) == b"new weights"


def test_a_branch_that_moves_after_locating_moves_neither_file(adapters: Adapters, destination: Path) -> None:
    found = adapters.found()
    adapters.repo.commit({CONFIG: b"[1]", WEIGHTS: b"other"})
    assert adapters.download(found.config, destination.with_name("config")) == b"{}"
    assert adapters.download(found.weights, destination.with_name("weights")) == b"weights"


@pytest.mark.parametrize("name", ["my-org/unknown", "my-org/sql@v9", "my-org/sql/folder", "other/adapter"])
def test_a_name_that_is_not_there_costs_one_call(adapters: Adapters, name: str) -> None:
    assert adapters.locate(name) is None
    assert len(adapters.calls()) == 1


def test_a_repository_without_a_config_is_no_adapter(adapters: Adapters) -> None:
    adapters.repo.commit({WEIGHTS: b"weights"})
    assert adapters.locate() is None


@pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_hostile_name_causes_no_call(adapters: Adapters, pattern: str) -> None:
    assert adapters.locate(pattern.replace("{known}", "my-org/sql").replace("{outside}", "etc/passwd")) is None
    assert adapters.calls() == []


@pytest.mark.parametrize(
    "name",
    [
        "not-mine/sql",
        "other/adapter-2",
        "other/adapter.git",
        "my-org",
        "my-org-2/sql",
        "my-org/../other/adapter",
        "my-org/sql@pr/1",
        "my-org/sql@refs/pr/1",
        "spaces/my-org/sql",
        "sql",
    ],
)
def test_nothing_outside_the_allow_list_causes_a_call(adapters: Adapters, name: str) -> None:
    assert adapters.locate(name) is None
    assert adapters.calls() == []


def test_a_revision_that_is_not_allowed_causes_no_call(adapters: Adapters) -> None:
    assert adapters.locate(f"my-org/sql@{adapters.sha}", adapters.resolver("my-org/*@main")) is None
    assert adapters.calls() == []


def test_a_repository_that_moved_is_served_from_where_it_is_now(adapters: Adapters, destination: Path) -> None:
    adapters.hub.moved["my-org/old"] = "my-org/sql"
    found = adapters.found("my-org/old")
    assert found.root == f"hf://my-org/sql@{adapters.sha}"
    assert adapters.download(found.weights, destination) == b"weights"


def test_a_repository_that_moved_out_of_the_allow_list_is_not_served(adapters: Adapters) -> None:
    adapters.add_repo("elsewhere/sql").commit(FILES)
    adapters.hub.moved["my-org/old"] = "elsewhere/sql"
    with pytest.raises(ResolverDenied, match=r"my-org/old has moved to elsewhere/sql, which hub\.allow does not name"):
        adapters.locate("my-org/old")


def test_a_file_that_is_there_already_is_not_overwritten(adapters: Adapters, destination: Path) -> None:
    destination.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        adapters.download(adapters.found().weights, destination)
    assert destination.read_bytes() == b"mine"


def test_an_empty_file_is_downloaded_too(adapters: Adapters, destination: Path) -> None:
    adapters.repo.commit({**FILES, CONFIG: b""})
    assert adapters.download(adapters.found().config, destination) == b""


def test_no_cache_is_kept(adapters: Adapters, destination: Path, hf_home: Path) -> None:
    adapters.download(adapters.found().weights, destination)
    assert list(destination.parent.iterdir()) == [destination]
    assert list(hf_home.iterdir()) == []


@pytest.mark.parametrize("num_sent", [0, 3])
def test_a_cancelled_download_ends_at_once_and_writes_nothing_more(
    adapters: Adapters, destination: Path, num_sent: int
) -> None:
    """Nothing more comes: the download can only wait, for longer than this test may take, and be cancelled."""
    found = adapters.found()
    adapters.hub.spoil("GET cdn", fake_hub.hanging(num_sent) if num_sent else fake_hub.silent)

    async def cancel(resolver: HubLoRAResolver) -> None:
        download = asyncio.create_task(resolver.download(found.weights, destination))
        await asyncio.to_thread(adapters.hub.is_hanging.wait)
        download.cancel()
        await asyncio.wait({download})
        assert download.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    adapters.run(cancel)
    assert not destination.exists() or destination.read_bytes() == b""


def test_the_screen_shows_what_is_allowed_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.example")
    resolver = HubLoRAResolver.from_config({"allow": "my-org/*,other/adapter@v?"})
    assert resolver is not None
    assert resolver.describe() == "my-org/*, other/adapter@v? at https://hub.example"


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "https://", "https://me:canary@hub.example"])
def test_a_wrong_endpoint_is_refused_at_start(endpoint: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"hub\.endpoint must be http") as failure:
        HubLoRAResolver.from_config({"allow": "my-org/*", "endpoint": endpoint})
    assert "canary" not in str(failure.value)


@pytest.mark.parametrize("variables", [{}, {"LORAMUX_HUB_ALLOW": ""}, {"LORAMUX_HUB_ENDPOINT": "https://hub.example"}])
def test_without_an_allow_list_it_is_not_active_and_says_why(variables: dict[str, str]) -> None:
    options = ResolverOptions.gather(environment=variables)
    manager = PluginManager.start(PluginConfig(options=options), entry_points(group="loramux", name="hub"))
    (status,) = manager.report()
    assert not status.is_active
    assert status.reason == "installed but not configured; options: allow, endpoint"


def test_it_is_found_through_its_entry_point_and_configured_by_a_variable() -> None:
    options = ResolverOptions.gather(environment={"LORAMUX_HUB_ALLOW": "my-org/*,other/adapter"})
    manager = PluginManager.start(PluginConfig(options=options), entry_points(group="loramux", name="hub"))
    (active,) = manager.resolvers
    assert isinstance(active.resolver, HubLoRAResolver)
    assert active.resolver.allow_list.text == "my-org/*, other/adapter"
