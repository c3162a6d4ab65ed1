from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.errors import ConfigInvalid
from loramux.server.access import keys_file
from loramux.server.access.auth import ApiKeys
from loramux.server.access.keys_file import KeysFile, KeysFileReader, following
from loramux.server.access.principal import KeyLimits

DOCS = Path(__file__).parents[4] / "docs" / "security.md"
SECRET = "sk-very-secret"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def table(identity: str = "team-a", sha256: str = DIGEST, **fields: str) -> str:
    """One `[[keys]]` table; fields are written as they are in the file."""
    lines = [f'id = "{identity}"', f'sha256 = "{sha256}"', *(f"{name} = {value}" for name, value in fields.items())]
    return "\n".join(["[[keys]]", *lines, ""])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.touch(mode=0o600)
    return path


def read(path: Path, text: str) -> KeysFile:
    path.write_text(text)
    return KeysFile.read(path)


def write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def test_a_key_says_no_more_than_it_must(path: Path) -> None:
    principal = ApiKeys.from_keys([], read(path, table()).keys).find(SECRET)

    assert principal is not None
    assert (principal.id, principal.scopes, principal.may_use_base) == ("team-a", {"infer"}, True)
    assert principal.allows("any/adapter")
    assert principal.limits == KeyLimits()


def test_a_key_has_the_scopes_names_and_limits_of_its_table(path: Path) -> None:
    text = table(
        scopes='["infer", "metrics"]',
        adapters='["team-a/*", "shared/**"]',
        base="false",
        requests_per_minute="60",
        new_adapters_per_minute="5",
        max_concurrent="8",
    )

    (key,) = read(path, text).keys

    principal = key.principal
    assert principal.scopes == {"infer", "metrics"}
    assert [principal.allows(name) for name in ("team-a/x", "team-a/x/y", "shared/x/y")] == [True, False, True]
    assert not principal.may_use_base
    assert principal.limits == KeyLimits(requests_per_minute=60, new_adapters_per_minute=5, max_concurrent=8)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "keys: Field required"),
        ("keys = []", "keys: List should have at least 1 item"),
        ("[[keys]]\nid = ", "is no TOML"),
        ("\udcff", "is no TOML"),
        ("keys = " + "[" * 100_000, "is no TOML"),
        (table() + "\n[other]", "other: Extra inputs"),
        (table(rps="1"), r"key 'team-a': rps: Extra inputs"),
        (table(sha256="abc"), "key 'team-a': sha256: String should match"),
        (table(sha256=DIGEST.upper()), "key 'team-a': sha256: String should match"),
        (table(sha256=SECRET), "key 'team-a': sha256: String should match"),
        ("[[keys]]\nid = 'x'", "key 'x': sha256: Field required"),
        (f"[[keys]]\nsha256 = '{DIGEST}'", "key number 1: id: Field required"),
        (table("a b"), "key 'a b': id: String should match"),
        (table(scopes='["root"]'), r"key 'team-a': scopes\.0: Input should be"),
        (table(scopes="[]"), "key 'team-a': scopes: List should have at least 1 item"),
        (table(adapters='"x"'), "key 'team-a': adapters: Input should be a valid list"),
        (table(adapters='["[a-z]"]'), r"key 'team-a': adapters\.0: String should match"),
        (table(adapters='["a***"]'), "key 'team-a': adapters: more than two"),
        (table(base="1"), "key 'team-a': base: Input should be a valid boolean"),
        (table(requests_per_minute="0"), "key 'team-a': requests_per_minute: Input should be greater"),
        (table(max_concurrent='"3"'), "key 'team-a': max_concurrent: Input should be a valid integer"),
        (table(scopes='["admin"]', adapters='["a"]'), "key 'team-a': adapters, base: a key with the scope admin"),
        (table(scopes='["admin"]', base="false"), "key 'team-a': adapters, base: a key with the scope admin"),
        (table() + table(sha256="0" * 64), "id is the same for more than one key: team-a, team-a"),
        (table() + table("team-b"), "sha256 is the same for more than one key: team-a, team-b"),
    ],
)
def test_what_is_wrong_is_said_with_file_key_and_field_and_nothing_is_repeated(
    path: Path, text: str, complaint: str
) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(ConfigInvalid, match=complaint) as caught:
        KeysFile.read(path)

    assert str(caught.value).startswith(f"--keys-file {path}: ")
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read: No such file"):
        KeysFile.read(tmp_path / "none")


@contextlib.contextmanager
def pipe_in_place_of(path: Path) -> Iterator[None]:
    """Put a pipe there that nobody writes to; after a while somebody does, so that a failing test ends, too."""
    path.unlink()
    os.mkfifo(path)
    writer = threading.Timer(5, path.write_bytes, (b"",))
    writer.daemon = True
    writer.start()
    yield
    writer.cancel()


def test_a_pipe_is_no_keys_file(path: Path) -> None:
    with pipe_in_place_of(path), pytest.raises(ConfigInvalid, match="cannot be read: it is no regular file"):
        KeysFile.read(path)


async def test_a_pipe_in_place_of_the_file_is_refused_and_keeps_no_thread(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = read(path, table())
    with pipe_in_place_of(path):
        await KeysFileReader(file, ApiKeys(of_file=file.keys)).check()

    assert "keys file cannot be read" in caplog.text


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o640, False), (0o644, True), (0o620, True)])
def test_a_file_that_others_can_read_or_change_is_noticed(path: Path, mode: int, is_open: bool) -> None:
    file = read(path, table())
    path.chmod(mode)

    assert file.is_open_to_others() == is_open


def blocks_of_documents(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)


def test_the_example_of_the_documents_is_a_keys_file(path: Path) -> None:
    (example,) = blocks_of_documents("toml")

    team, operator, prometheus = (key.principal for key in read(path, example).keys)

    assert (team.id, team.scopes, team.may_use_base) == ("team-a", {"infer"}, False)
    assert [team.allows(name) for name in ("team-a/x/y", "shared/x", "shared/x/y", "x")] == [True, True, False, False]
    assert team.limits == KeyLimits(requests_per_minute=600, new_adapters_per_minute=20, max_concurrent=32)
    assert (operator.scopes, prometheus.scopes) == ({"admin", "metrics", "infer"}, {"metrics"})


def test_the_command_of_the_documents_makes_a_key_and_its_digest(path: Path) -> None:
    (command,) = blocks_of_documents("sh")

    ran = subprocess.run(["sh", "-c", f'{command}\necho "$KEY"'], capture_output=True, text=True, check=True)

    digest, _, key = ran.stdout.split()
    assert len(key) >= 32  # 43 characters less the few that are left out
    assert ApiKeys.from_keys([], read(path, table(sha256=digest)).keys).find(key) is not None


def test_no_digest_shows_in_a_repr(path: Path) -> None:
    file = read(path, table())

    assert DIGEST not in repr((file, file.keys, ApiKeys(of_file=file.keys)))
    assert str(bytes.fromhex(DIGEST)) not in repr((file, file.keys))


async def test_a_changed_file_replaces_its_keys_and_no_others(path: Path) -> None:
    file = read(path, table())
    keys = ApiKeys.from_keys(["fixed"], file.keys)
    reader = KeysFileReader(file, keys)

    write(path, table("team-b", hashlib.sha256(b"other").hexdigest()))
    await reader.check()

    assert [keys.find(key) is not None for key in ("fixed", "other", SECRET)] == [True, True, False]


async def test_a_changed_file_is_noticed_while_the_server_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_file, "CHECK_SECONDS", 0)
    file = read(path, table())
    keys = ApiKeys(of_file=file.keys)

    async with following(file, keys), asyncio.timeout(5):
        write(path, table("team-b"))
        while getattr(keys.find(SECRET), "id", None) != "team-b":
            await asyncio.to_thread(path.stat)


async def test_a_fault_while_looking_is_logged_and_does_not_end_the_watch(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_file, "CHECK_SECONDS", 0)
    file = read(path, table())
    looks, has_looked_again = [], asyncio.Event()

    async def check(self: KeysFileReader) -> None:
        looks.append(self)
        if len(looks) == 1:
            raise RuntimeError("oops")
        has_looked_again.set()

    monkeypatch.setattr(KeysFileReader, "check", check)
    async with following(file, ApiKeys(of_file=file.keys)):
        await asyncio.wait_for(has_looked_again.wait(), 5)

    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "oops" in caplog.text


@pytest.mark.parametrize("broken", ["", "[[keys]]", None])
async def test_a_broken_file_leaves_the_keys_and_is_logged_once(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = read(path, table())
    keys = ApiKeys(of_file=file.keys)
    reader = KeysFileReader(file, keys)

    write(path, broken)
    for _ in range(3):
        await reader.check()

    assert keys.find(SECRET) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]

    write(path, table("team-b"))
    await reader.check()

    assert getattr(keys.find(SECRET), "id", None) == "team-b"


async def test_an_unchanged_file_is_not_read_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read(path, table())
    monkeypatch.setattr(KeysFile, "parse", None)

    await KeysFileReader(file, ApiKeys(of_file=file.keys)).check()
