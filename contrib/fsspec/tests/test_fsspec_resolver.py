"""The fsspec plugin against file systems in memory and on disk, and against a real web server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from loramux.errors import ConfigInvalid, SourceChanged
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing import HOSTILE_NAMES, RemoteResolverContract
from loramux_fsspec import FsspecLoRAResolver

DEFAULTS = {"chat_template.jinja": b"{{ messages }}", "generation_config.json": b"{}"}
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 5_000_001}

PlaceAt = Callable[[str], Any]


class RangedFileSystem(AsyncFileSystem):
    """Asynchronous as gcsfs and adlfs are: no streams, and information from a listing that it keeps."""

    protocol = "ranged"
    cachable = False

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.memory = MemoryFileSystem()
        self.listing: dict[str, dict[str, object]] = {}

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listing.clear()

    async def _info(self, path: str, **_: object) -> dict[str, object]:
        await asyncio.sleep(0)
        if path not in self.listing:
            self.listing[path] = self.memory.info(path)
        return self.listing[path]

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        await asyncio.sleep(0)
        return bytes(self.memory.cat_file(path, start, end))


fsspec.register_implementation("ranged", RangedFileSystem, clobber=True)


def put(memory: MemoryFileSystem, **files: bytes) -> None:
    for name, content in files.items() or {**FILES, **DEFAULTS}.items():
        memory.pipe_file(f"/adapters/team/sql/{name.replace('__', '.')}", content)


class _Contract(RemoteResolverContract):
    @pytest.fixture
    def known_name(self) -> str:
        return "team/sql"

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        return FILES

    @pytest.fixture
    def known_defaults(self) -> Mapping[str, bytes]:
        return DEFAULTS


class TestContractInMemory(_Contract):
    @pytest.fixture(params=["memory", "ranged"])
    def resolver(self, request: pytest.FixtureRequest, memory: MemoryFileSystem, place_at: PlaceAt) -> LoRAResolver:
        put(memory)
        return place_at(f"{request.param}:///adapters/{{lora_name}}").resolver()


class TestContractOnDisk(_Contract):
    @pytest.fixture
    def resolver(self, tmp_path_factory: pytest.TempPathFactory, place_at: PlaceAt) -> LoRAResolver:
        root = tmp_path_factory.mktemp("adapters")
        (root / "team" / "sql").mkdir(parents=True)
        for name, content in {**FILES, **DEFAULTS}.items():
            (root / "team" / "sql" / name).write_bytes(content)
        return place_at(f"file://{root}/{{lora_name}}").resolver()


@pytest.mark.parametrize("key", ["adapter_config__json", "adapter_model__safetensors"])
@pytest.mark.parametrize("protocol", ["memory", "ranged"])
def test_the_revision_changes_when_either_file_does(
    memory: MemoryFileSystem, protocol: str, key: str, place_at: PlaceAt
) -> None:
    put(memory)
    place = place_at(f"{protocol}:///adapters/{{lora_name}}")

    async def revisions(resolver: FsspecLoRAResolver) -> list[str]:
        before = await resolver.locate("base", "team/sql")
        put(memory, **{key: b"another"})
        after = await resolver.locate("base", "team/sql")
        assert before is not None and after is not None
        return [before.revision, after.revision]

    before, after = place.run(revisions)
    assert before != after


def test_a_file_that_is_replaced_while_it_is_read_has_changed(
    memory: MemoryFileSystem, tmp_path: Path, place_at: PlaceAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size stays, and the first half has been read."""
    put(memory)
    place = place_at("ranged:///adapters/{lora_name}")
    found = place.found()
    read = RangedFileSystem._cat_file

    async def read_and_replace(self: RangedFileSystem, path: str, **bounds: int) -> bytes:
        piece = await read(self, path, **bounds)
        put(memory)
        return piece

    monkeypatch.setattr(RangedFileSystem, "_cat_file", read_and_replace)
    with pytest.raises(SourceChanged, match=r"adapter_model\.safetensors has been replaced"):
        place.download(found.weights, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size == found.weights.nbytes


@pytest.mark.parametrize("protocol", ["memory", "ranged"])
def test_a_folder_is_no_file(memory: MemoryFileSystem, protocol: str, place_at: PlaceAt) -> None:
    memory.pipe_file("/adapters/team/sql/adapter_config.json/other", b"{}")
    assert place_at(f"{protocol}:///adapters/{{lora_name}}").locate() is None


def test_below_a_file_there_is_nothing(tmp_path: Path, place_at: PlaceAt) -> None:
    (tmp_path / "team").write_bytes(b"")
    assert place_at(f"file://{tmp_path}/{{lora_name}}").locate() is None


@pytest.mark.parametrize("link", ["team/sql", "team/sql/adapter_config.json"])
def test_a_symlink_does_not_lead_out_of_the_prefix(tmp_path: Path, link: str, place_at: PlaceAt) -> None:
    for folder in ("inside/team/sql", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        for name, content in FILES.items():
            (tmp_path / folder / name).write_bytes(content)
    assert place_at(f"file://{tmp_path}/inside/{{lora_name}}").locate() is not None
    linked = tmp_path / "inside" / link
    linked.rename(tmp_path / "away")
    linked.symlink_to(tmp_path / "outside" / linked.relative_to(tmp_path / "inside" / "team/sql"))
    assert place_at(f"file://{tmp_path}/inside/{{lora_name}}").locate() is None


def test_what_is_fetched_from_a_closed_resolver_is_fetched_anew(memory: MemoryFileSystem, place_at: PlaceAt) -> None:
    put(memory)

    async def close_and_locate(resolver: FsspecLoRAResolver) -> bool:
        await resolver.locate("base", "team/sql")
        await resolver.aclose()
        return await resolver.locate("base", "team/sql") is not None

    assert place_at("memory:///adapters/{lora_name}").run(close_and_locate)


def test_a_file_that_is_there_already_is_not_overwritten(
    memory: MemoryFileSystem, tmp_path: Path, place_at: PlaceAt
) -> None:
    put(memory)
    place = place_at("memory:///adapters/{lora_name}")
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        place.download(place.found().weights, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("protocol", ["memory", "ranged"])
def test_an_empty_file_is_downloaded_too(
    memory: MemoryFileSystem, tmp_path: Path, protocol: str, place_at: PlaceAt
) -> None:
    put(memory, adapter_config__json=b"{}", adapter_model__safetensors=b"")
    place = place_at(f"{protocol}:///adapters/{{lora_name}}")
    assert place.download(place.found().weights, tmp_path / "empty") == b""


@pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_a_hostile_name_connects_to_nothing(pattern: str, place_at: PlaceAt) -> None:
    resolver = place_at("memory:///adapters/{lora_name}").resolver()
    resolver.source._connect = None  # whoever calls it fails
    assert asyncio.run(resolver.locate("base", pattern.replace("{known}", "team/sql"))) is None


def test_what_fsspec_is_configured_with_is_used(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, place_at: PlaceAt
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "memory", {"global_store": False})
    put(memory)
    assert place_at("memory:///adapters/{lora_name}").locate() is None


@pytest.mark.parametrize(
    "url",
    [
        "gs",
        "/srv/{lora_name}",
        "memory:///adapters",
        "memory:///{base_model_name}/{lora_name}",
        "memory://{lora_name}",
        "http://{lora_name}/adapters",
        "memory:///a//{lora_name}",
        "memory:///a/../{lora_name}",
        "http://host/{lora_name}?token=x",
        "simplecache::memory:///{lora_name}",
        "nonsense://place/{lora_name}",
        "oci://bucket/{lora_name}",
    ],
)
def test_a_wrong_url_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"resolver option fsspec\.url="):
        FsspecLoRAResolver.from_config({"url": url})


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="ocifs"):
        FsspecLoRAResolver.from_config({"url": "oci://bucket/{lora_name}"})


def test_a_password_in_the_url_is_shown_nowhere(memory: MemoryFileSystem, place_at: PlaceAt) -> None:
    put(memory)
    url = "memory://user:canary@place/adapters/{lora_name}"
    assert place_at(url).resolver().describe() == "memory://place/adapters/{lora_name}"
    with pytest.raises(ConfigInvalid) as failure:
        FsspecLoRAResolver.from_config({"url": f"{url}?x"})
    assert "canary" not in str(failure.value)


def test_without_a_url_it_is_not_configured() -> None:
    assert FsspecLoRAResolver.from_config({}) is None


def test_it_is_asked_after_the_plugins_that_know_their_source() -> None:
    assert 30 < FsspecLoRAResolver.priority < 50


def test_its_page_lists_every_option() -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `url")]
    assert tuple(listed) == FsspecLoRAResolver.option_names


def test_it_is_found_through_its_entry_point() -> None:
    (entry_point,) = entry_points(group="loramux", name="fsspec")
    assert entry_point.load() is FsspecLoRAResolver
