"""`loramux store`: what people and programs read, and an exit status that scripts can rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux.adapters.disk_store import DiskStore, StoredAdapter
from loramux.cli import main
from loramux.lora.remote import WEIGHTS_NAME
from store_cases import BASE, contents, publish, ref_to

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAMUX_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def adapters(root: Path) -> dict[str, StoredAdapter]:
    """Three adapters, the last of them under two names."""
    with DiskStore.open(root, min_free_bytes=0) as store:
        adapters = {name: publish(store, name.encode() * 1000) for name in ("sql", "json", "chat")}
        for name, adapter in adapters.items():
            store.set_ref(BASE, name, ref_to(adapter.digest))
        store.set_ref(BASE, "chat@main", ref_to(adapters["chat"].digest))
    return adapters


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str]:
        status = main(["store", *arguments])
        return status, capsys.readouterr().out

    return run


def flip(adapter: StoredAdapter) -> None:
    path = adapter.folder / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def test_ls_shows_what_was_used_last_first_with_its_names(run: Run, adapters: dict[str, StoredAdapter]) -> None:
    status, out = run("ls")

    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert lines[0] == ["digest", "size", "last", "used", "names", "state"]
    assert [line[0] for line in lines[1:4]] == [adapters[name].digest[:12] for name in ("chat", "json", "sql")]
    assert lines[1][-3:] == ["chat,", "chat@main", "ok"]
    assert out.splitlines()[4].startswith("3 adapters, 11.9 KiB in ")


def test_ls_as_json_has_whole_digests_and_refs(run: Run, root: Path, adapters: dict[str, StoredAdapter]) -> None:
    (adapters["sql"].folder / "stray").write_text("")
    status, out = run("ls", "--json")

    document = json.loads(out)
    assert status == 0
    assert document["store"] == str(root)
    by_digest = {adapter["digest"]: adapter for adapter in document["adapters"]}
    assert by_digest[adapters["chat"].digest]["fault"] is None
    assert [ref["lora_name"] for ref in by_digest[adapters["json"].digest]["refs"]] == ["json"]
    assert by_digest[adapters["json"].digest]["refs"][0]["ref"]["source_root"] == "s3://bucket/prefix"
    assert "stray" in by_digest[adapters["sql"].digest]["fault"]


def test_verify_is_content_with_a_whole_store(run: Run, adapters: dict[str, StoredAdapter]) -> None:
    assert run("verify") == (0, "3 adapters verified, 11.9 KiB; 0 corrupt\n")


def test_verify_names_what_is_corrupt_by_its_status_too(run: Run, adapters: dict[str, StoredAdapter]) -> None:
    flip(adapters["sql"])

    status, out = run("verify")
    assert status == 1
    assert out.startswith(f"{adapters['sql'].digest}: {WEIGHTS_NAME} has sha256 ")
    assert out.endswith("1 corrupt\n")

    status, out = run("verify", "--json")
    assert status == 1
    assert [entry["digest"] for entry in json.loads(out)["corrupt"]] == [adapters["sql"].digest]


def test_listing_and_verifying_go_on_beside_a_server_and_cleaning_does_not(
    run: Run, root: Path, adapters: dict[str, StoredAdapter], capsys: pytest.CaptureFixture[str]
) -> None:
    with DiskStore.open(root):
        assert run("ls")[0] == 0
        assert run("verify")[0] == 0
        assert main(["store", "gc"]) == 2
    assert f"loramux store: error: the adapter store '{root}' is in use by another process" in capsys.readouterr().err


def test_gc_says_what_it_removed(run: Run, root: Path, adapters: dict[str, StoredAdapter]) -> None:
    flip(adapters["sql"])
    (root / "tmp" / "leftover").mkdir()

    status, out = run("gc", "--max-disk-bytes", "5KiB")

    assert status == 0
    assert "removed 1 corrupt and 1 unused adapters, 2 names that led nowhere, 1 leftovers" in out
    assert contents(root) == {adapters["chat"].digest}
    assert json.loads(run("gc", "--json")[1])["freed_nbytes"] == 0


def test_the_flag_wins_over_the_environment(run: Run, adapters: dict[str, StoredAdapter], tmp_path: Path) -> None:
    DiskStore.open(tmp_path / "other").close()

    assert run("ls", "--store", str(tmp_path / "other"))[1] == f"0 adapters, 0 B in {tmp_path / 'other'}\n"


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_a_wrong_setting_and_is_not_made(
    action: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", action]) == 2
    assert f"there is no adapter store at '{root}'; --store or LORAMUX_STORE says where" in capsys.readouterr().err
    assert not root.exists()


@pytest.mark.parametrize("value", ["0", "0GiB"])
def test_a_quota_of_nothing_is_refused(
    value: str, root: Path, adapters: dict[str, StoredAdapter], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "gc", "--max-disk-bytes", value]) == 2
    assert "--max-disk-bytes must be at least 1, got 0" in capsys.readouterr().err
